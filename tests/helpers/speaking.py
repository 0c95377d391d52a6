"""Speaking a language for a while, as another test's process would not notice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from noesis.core.i18n import speech


@contextmanager
def speaking(code: str | None = None, **environment: str) -> Iterator[None]:
    """Speak `code`; None: what the environment asks for, which `environment` adds to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (speech.VARIABLE, "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
            patch.setenv(name, os.environ.get(name, ""))
        if code is None:
            patch.setenv(speech.VARIABLE, "")
            for name, value in environment.items():
                patch.setenv(name, value)
        patch.setattr(speech, "_spoken", code)
        if code is not None:
            speech.speak(code)
        yield
