"""Does the run directory still hold what its manifest says? `check_run.py` makes the checks, from `Evidence`."""
