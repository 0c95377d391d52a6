"""Which of torchrun's processes this one is (https://docs.pytorch.org/docs/stable/elastic/run.html)."""

from __future__ import annotations

import os


def is_worker() -> bool:
    """Whether this process was started by torchrun."""
    return "LOCAL_RANK" in os.environ


def local_rank() -> int:
    """This process's GPU on this host; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the process that writes files; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"
