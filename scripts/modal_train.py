"""Train in the cloud: `modal run scripts/modal_train.py --epochs 3`.

`--test-only` judges, `--merge-only` merges, `--dry-run` prints the quote.
App, volumes and functions are in src/noesis/cloud/app.py; they call the same stages as `noesis demo`.
"""

from noesis.cloud.app import answer_shard, app, conduct, judge, judge_epoch, main, merge, train

__all__ = ["answer_shard", "app", "conduct", "judge", "judge_epoch", "main", "merge", "train"]
