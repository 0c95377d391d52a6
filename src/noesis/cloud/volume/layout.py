"""Names on the volume."""

from __future__ import annotations

EPOCHS = "tribunal/epochs"


SUMMARY = "summary.txt"
OPENED = "opened.json"  # which call opened the run that lies there: what lay there before is not its work; and in how many containers


FOLDER = ".cloud"
