"""`noesis …` in this process: what a command prints and its exit code, without the half second that starting Python takes.

And `speaking` a language for a while, as another test would not notice.
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.i18n import speech


def noesis(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as typed in `cwd`; `env` is added to the environment. An error without a message is raised here."""
    from noesis.cli import run_command
    from noesis.core import console

    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in arguments]
    with pytest.MonkeyPatch.context() as patch, chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(console, "_quiet_stdout", False)
        patch.setattr(speech, "_spoken", None)
        for name, value in ({"LANGUAGE": "", speech.VARIABLE: "en"} | dict(env or {})).items():  # what the command sets
            patch.setenv(name, value)
        code = run_command(words)
    return subprocess.CompletedProcess(["noesis", *words], code, out.getvalue(), err.getvalue())


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
