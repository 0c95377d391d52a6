"""Train in the cloud: `modal run scripts/modal_train.py --epochs 3`, `--test-only` to judge, `--merge-only` to merge.

App, volume, secret and functions are in src/noesis/cloud/app.py; they call the same stages as `noesis demo`.
"""

from noesis.cloud.app import app, judge, main, merge, train

__all__ = ["app", "judge", "main", "merge", "train"]
