"""Train on Modal: `modal run scripts/modal_train.py --epochs 3`.

--test-only judges, --merge-only merges, --dry-run prints the quote. App, volumes and functions are in
src/noesis/cloud/app.py; they call the same stages as `noesis demo`. The project is the one at or above the working
directory, else this checkout's.
"""

from pathlib import Path

try:
    from noesis.core.project import name_project_unless_here

    name_project_unless_here(Path(__file__).resolve().parents[1])
    from noesis.cloud.app import answer_shard, app, conduct, judge, judge_epoch, main, merge, train
except ModuleNotFoundError as error:
    raise SystemExit(
        f"error: {error}, in the environment of this `modal`. Set one up with  make setup  and use it:  "
        "source .venv/bin/activate"
    ) from None

__all__ = ["answer_shard", "app", "conduct", "judge", "judge_epoch", "main", "merge", "train"]
