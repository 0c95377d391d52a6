"""Which installed packages a container may import: those that its image installs, with what they require, and Modal's own."""

from __future__ import annotations

import importlib.metadata
import re
from functools import lru_cache

from packaging.requirements import Requirement

OURS = ("noesis", "__editable__")  # in no image: the project travels as uploaded files


def named(commands: list[str]) -> frozenset[str]:
    """The packages that an image's Dockerfile lines pin (`name==version`), normalised."""
    installs = [line for line in commands if "pip install" in line]
    return frozenset(
        _normal(name) for line in installs for name in re.findall(r"(?<![\w.-])([A-Za-z0-9][\w.-]*)==", line)
    )


@lru_cache
def allowed(names: frozenset[str]) -> frozenset[str] | None:
    """Entries of site-packages that these packages and Modal own; None where the image names none: everything."""
    if not names:
        return None
    wanted, found = list(names | {"modal"}), set()
    while wanted:
        name = wanted.pop()
        if name not in found and name in _distributions():
            found.add(name)
            wanted += _distributions()[name][1]
    return frozenset(entry for name in found for entry in _distributions()[name][0])


@lru_cache
def _distributions() -> dict[str, tuple[set[str], list[str]]]:
    """Package → the top-level entries that it installed, the packages that it requires here."""
    found = {}
    for distribution in importlib.metadata.distributions():
        entries = {file.parts[0] for file in distribution.files or ()}
        needs = [Requirement(text) for text in distribution.requires or ()]
        required = [_normal(r.name) for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
        found[_normal(distribution.metadata["Name"])] = (entries, required)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
