"""Names on the Modal volume. Its root is the run directory; the rest is next to the run's own files.

/manifest.json, /checkpoints/, /merged/, …   the run
/dataset/                                    the uploaded export
/runs/NAME/                                  older runs
/summary.txt                                 what the last run left
/.cloud/                                     lease.json, opened.json: who works here
/tribunal/epochs/, /tribunal/shards/         what parallel containers leave
"""

from __future__ import annotations

DATASET = "dataset"
ARCHIVE = "runs"
SUMMARY = "summary.txt"
FOLDER = ".cloud"
LEASE = "lease.json"  # in FOLDER
OPENED = "opened.json"  # in FOLDER
EPOCHS = "tribunal/epochs"
SHARDS = "tribunal/shards"
