"""Machines as they are: no home, folders named in the environment, a working directory that was removed."""

from __future__ import annotations

import ast
import errno
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.files import explain_os_error
from noesis.core.machine.folders import cache_folder, expanded, home, hub_folder, settle_folders, variable_of
from noesis.core.project import Project
from noesis.llm.hub import find_tokenizer
from noesis.workspace.doctor import run_checks

NAMES = ("HOME", "NOESIS_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that names no folder, and a user that the system does not know."""
    for name in (*NAMES, "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that what a command sets is undone, too
        monkeypatch.delenv(name)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return monkeypatch


@pytest.mark.parametrize("given", [None, "relative", "~"])
def test_without_a_home_a_command_says_what_to_set(given: str | None, bare: pytest.MonkeyPatch):
    if given is not None:
        bare.setenv("HOME", given)
    assert home() is None
    assert hub_folder() is None
    assert find_tokenizer("a/model") is None
    with pytest.raises(UsageError, match="set NOESIS_CACHE to a folder"):
        cache_folder()


def test_without_a_home_commands_work_with_noesis_cache(
    bare: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bare.setenv("NOESIS_CACHE", str(tmp_path / "c"))
    assert run_command(["clean", "--project", str(ROOT)]) == 0
    assert os.environ["HF_HOME"] == str(tmp_path / "c" / "huggingface")  # and not a folder called ~
    assert hub_folder() == tmp_path / "c" / "huggingface" / "hub"
    assert {check.name: check.ok for check in run_checks(ROOT)}["cache"]
    assert load_config(Project(ROOT)).training.model == "smollm2"


def test_without_a_home_nothing_ends_in_a_traceback(bare: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    codes = {
        words: run_command([*words.split(), "--project", str(ROOT)])
        for words in ("doctor", "clean", "plan --model smollm2", "data validate")
    }
    assert codes == {"doctor": 1, "clean": 2, "plan --model smollm2": 2, "data validate": 2}
    out, err = capsys.readouterr()
    assert "MISSING  cache: no folder" in out
    assert err.count("set NOESIS_CACHE to a folder") == 3


def test_a_user_without_a_name_has_a_folder_for_compiled_code(bare: pytest.MonkeyPatch, tmp_path: Path):
    """Containers that are started with `--user 1234`; torch asks for the name of that user, and fails."""
    bare.setenv("HOME", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        bare.delenv(name, raising=False)
    settle_folders()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache/noesis/torchinductor")


@pytest.mark.parametrize("name", ["~", "~/x", "~nobody-has-this-name/x"])
def test_a_path_in_a_home_that_is_not_there_is_left_as_it_is(name: str, bare: pytest.MonkeyPatch):
    assert expanded(name) == Path(name)


@pytest.mark.parametrize(
    ("given", "cache", "hub"),
    [
        ({}, "h/.cache/noesis", "h/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "x"}, "x/noesis", "x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "x", "NOESIS_CACHE": "n"}, "n", "x/huggingface/hub"),
        ({"XDG_CACHE_HOME": ""}, "h/.cache/noesis", "h/.cache/huggingface/hub"),
        ({"NOESIS_CACHE": "", "HF_HOME": ""}, "h/.cache/noesis", "h/.cache/huggingface/hub"),
        ({"HF_HOME": "f"}, "h/.cache/noesis", "f/hub"),
        ({"HF_HOME": "f", "XDG_CACHE_HOME": "x"}, "x/noesis", "f/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "old", "HF_HOME": "f"}, "h/.cache/noesis", "old"),
        ({"HF_HUB_CACHE": "new", "HUGGINGFACE_HUB_CACHE": "old"}, "h/.cache/noesis", "new"),
        ({"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "old"}, "h/.cache/noesis", "old"),
    ],
)
def test_folders_named_in_the_environment(
    given: dict[str, str], cache: str, hub: str, bare: pytest.MonkeyPatch, tmp_path: Path
):
    bare.setenv("HOME", str(tmp_path / "h"))
    for name, value in given.items():
        bare.setenv(name, str(tmp_path / value) if value else "")
    settle_folders()
    assert (cache_folder(), hub_folder()) == (tmp_path / cache, tmp_path / hub)


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"XDG_CACHE_HOME": "/x"}, {"HF_HOME": "~/f"}, {"HUGGINGFACE_HUB_CACHE": "/o"},
                                   {"HF_HUB_CACHE": "", "HF_HOME": "/f"}, {"HF_HUB_CACHE": "$XDG_CACHE_HOME/h"}])  # fmt: skip
def test_the_hub_library_looks_in_the_same_folder(given: dict[str, str]):
    code = (
        "from noesis.core.machine.folders import *; settle_folders(); import huggingface_hub.constants as c;"
        "assert c.HF_HUB_CACHE == str(hub_folder()), (c.HF_HUB_CACHE, hub_folder())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | {"HOME": "/home/somebody"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_what_an_earlier_version_left_at_home_stays_in_use(bare: pytest.MonkeyPatch, tmp_path: Path):
    """Judges' replies lie there that were paid for."""
    bare.setenv("HOME", str(tmp_path / "h"))
    bare.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    (tmp_path / "h/.cache/noesis").mkdir(parents=True)
    assert cache_folder() == tmp_path / "h/.cache/noesis"
    (tmp_path / "x/noesis").mkdir(parents=True)
    assert cache_folder() == tmp_path / "x/noesis"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.EPERM])
def test_a_cache_that_cannot_be_written_names_the_variable(code: int, bare: pytest.MonkeyPatch, tmp_path: Path):
    bare.setenv("HOME", str(tmp_path))
    cache, hub = tmp_path / ".cache/noesis/models/x", tmp_path / ".cache/huggingface/hub/x"
    for path, name in ((cache, "NOESIS_CACHE"), (hub, "HF_HOME"), (tmp_path / ".cache", "NOESIS_CACHE")):
        assert variable_of(path) == name
        words = str(explain_os_error(OSError(code, os.strerror(code), str(path))))
        assert f"set {name} to a folder that you may write" in words
    assert variable_of(tmp_path / "runs") is None


def test_a_working_directory_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tmp_path / "gone"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    for words in ("doctor", "status x", "plan", "verify x", "data validate", "clean", "judge x", "serve x"):
        assert run_command(words.split()) == 1, words
        assert "the working directory was removed" in capsys.readouterr().err, words
    assert run_command(["clean", "--project", str(ROOT)]) == 0


@pytest.mark.parametrize("failure", [FileNotFoundError, PermissionError, IsADirectoryError, OSError])
def test_a_machine_without_proc_has_a_name_and_threads(failure: type[OSError], monkeypatch: pytest.MonkeyPatch):
    """macOS, the BSDs, and containers that hide it."""
    from noesis.core import device

    read = Path.read_text

    def read_text(self: Path, *arguments: Any, **more: Any) -> str:
        if self.is_relative_to("/proc") or self.is_relative_to("/sys"):
            raise failure(errno.EACCES, "hidden", str(self))
        return read(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    found = device.cpu_device()
    assert found.name
    assert found.threads >= 1
    assert found.memory_bytes > 0


def test_nothing_but_the_cpu_and_a_container_s_share_of_it_is_read_from_proc_or_sys():
    source = {f.name: f.read_text(encoding="utf-8") for f in (ROOT / "src").rglob("*.py")}
    assert {
        name: text.count('"/proc') + text.count('"/sys/')
        for name, text in source.items()
        if '"/proc' in text or '"/sys/' in text
    } == {"device.py": 2}  # the processor, and what of it a container may use


def test_too_many_open_files_say_how_to_allow_more():
    assert "ulimit -n" in str(explain_os_error(OSError(errno.EMFILE, "Too many open files", "x")))


# --- in all of the code


def calls() -> list[tuple[str, ast.Call]]:
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno}", node)
        for folder in ("src", "scripts", "docs")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def reads_text_by_locale(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if any(word.arg in ("encoding", None) for word in call.keywords):
        return False
    if name.startswith("subprocess."):
        return any(word.arg in ("text", "universal_newlines") for word in call.keywords)
    if name.endswith(
        (".read_text", ".write_text")
    ):  # of a path: files.write_text and remote.read_text take other arguments
        return len(call.args) <= 1 and isinstance(call.func, ast.Attribute)
    if name == "open" or name.endswith(".fdopen"):
        mode = call.args[1] if len(call.args) > 1 else next((w.value for w in call.keywords if w.arg == "mode"), None)
        return not (isinstance(mode, ast.Constant) and "b" in mode.value)
    return False


def test_text_is_never_read_in_the_encoding_of_the_locale():
    assert [place for place, call in calls() if reads_text_by_locale(call)] == []


def test_the_home_is_looked_up_in_one_place():
    """`Path.home()` and `Path.expanduser()` raise RuntimeError where there is none."""
    found = [place for place, call in calls() if ast.unparse(call.func).endswith(("Path.home", ".expanduser"))]
    assert [place.rsplit(":", 1)[0] for place in found if place.startswith("src")] == [
        "src/noesis/core/machine/folders.py"
    ]
