"""Runs a demonstration of toy_app.py."""

from __future__ import annotations

import re
from pathlib import Path

from ..plane import ControlPlane

TOY = Path(__file__).with_name("toy_app.py")


def toy(plane: ControlPlane, what: str, *more: str, code: int = 0) -> str:
    """What the toy app printed as its result; or, where there is none, all that was printed."""
    done = plane.modal("run", TOY, "--what", what, *more)
    assert done.returncode == code, done.stdout + done.stderr
    found = re.search(r"^RESULT (.*)$", done.stdout, re.M)
    return found[1] if found else done.stdout + done.stderr
