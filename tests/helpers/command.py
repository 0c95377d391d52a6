"""`noesis …` in this process: what a command prints and its exit code, without the half second that starting Python takes."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from helpers.project import ROOT


def noesis(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as typed in `cwd`; `env` is added to the environment. An error without a message is raised here."""
    from noesis.cli import run_command
    from noesis.core import console
    from noesis.core.i18n import speech

    out, err = io.StringIO(), io.StringIO()
    words = [str(word) for word in arguments]
    with pytest.MonkeyPatch.context() as patch, chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(console, "_quiet_stdout", False)
        patch.setattr(speech, "_spoken", None)
        for name, value in ({"LANGUAGE": "", speech.VARIABLE: "en"} | dict(env or {})).items():  # what the command sets
            patch.setenv(name, value)
        code = run_command(words)
    return subprocess.CompletedProcess(["noesis", *words], code, out.getvalue(), err.getvalue())
