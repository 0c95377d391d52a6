"""A griffe extension: doctests that stand in a docstring's prose are shown as code. https://mkdocstrings.github.io/griffe/"""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^(>>> .*(?:\n.+)*)", re.M)  # up to the next blank line


class Doctests(griffe.Extension):
    """Puts a fence around each."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\1\n```", obj.docstring.value)
