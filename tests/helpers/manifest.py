"""manifest.json edited from outside, as nothing in the product may do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def edited_manifest(run: Path) -> Iterator[dict[str, Any]]:
    """The manifest as JSON, to be changed in place; it is written back at the end."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    yield manifest
    file.write_text(json.dumps(manifest), encoding="utf-8")
