"""What `modal run -m noesis.cloud.train` finds in a project, and `scripts/modal_train.py` in a checkout.

--test-only judges, --merge-only merges, --dry-run prints the quote. `app.py` has more than one app; here is the one
that a run needs.
"""

from __future__ import annotations

from noesis.cloud.app import answer_shard, app, conduct, judge, judge_epoch, main, merge, train

__all__ = ["answer_shard", "app", "conduct", "judge", "judge_epoch", "main", "merge", "train"]
