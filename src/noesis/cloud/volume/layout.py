"""Names on the Modal volume. Its root is the run directory; the rest is next to the run's own files.

/manifest.json, /checkpoints/, /merged/, …   the run
/dataset/                                    the uploaded export
/runs/NAME/                                  older runs
/summary.txt                                 what the last run left
/.cloud/                                     lease.json, opened.json, charges.json, writers/: who works here;
                                             ended.json: how the last run ended
/tribunal/epochs/, /tribunal/shards/         what parallel containers leave
"""

from __future__ import annotations

from pathlib import Path

from noesis.core.console import shell_word
from noesis.core.rooted import guard
from noesis.run.archive import RUN_FILES

DATASET = "dataset"
ARCHIVE = "runs"
SUMMARY = "summary.txt"
FOLDER = ".cloud"
LEASE = "lease.json"  # in FOLDER
OPENED = "opened.json"  # in FOLDER
ENDED = "ended.json"  # in FOLDER
CHARGES = "charges.json"  # in FOLDER: containers that were paid for and left nothing in the ledger
WRITERS = "writers"  # in FOLDER: a heartbeat for each container that writes the run
EPOCHS = "tribunal/epochs"
SHARDS = "tribunal/shards"


def guard_volume(root: Path) -> None:
    """Never follow a link on the mounted volume; older runs on it are not looked through.

    Raises:
        UnsafePathError: it holds a link, or anything else that is neither a file nor a folder.
    """
    guard(root, parts=(*RUN_FILES, DATASET, FOLDER))


def get_command(volume: str, path: str, folder: str) -> str:
    """The shell line that copies `path` of the volume into `folder`.

    Without the folder, Modal's command would write all files over each other into one file of that name, and succeed.
    """
    name = shell_word(folder)
    return f"mkdir -p {name} && modal volume get {shell_word(volume)} {shell_word(path)} ./{name}"
