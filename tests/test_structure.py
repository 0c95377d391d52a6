"""What holds the project together: the direction of imports, the tree of errors, what the command line loads, what files may name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import noesis.core.errors
from helpers.project import ROOT

SRC = ROOT / "src" / "noesis"
# A module may import from layers below its own, and within its own package.
LAYERS = [
    {"core", "__init__"},
    {"constitution", "llm", "planning", "run"},
    {"dataset", "training", "tribunal", "release", "serving", "workspace"},
    {"synthesis", "pipeline"},
    {"cloud"},
    {"cli"},
    {"__main__"},
]
HEAVY = {
    "torch": {"llm", "training", "release"},
    "transformers": {"core", "llm", "training", "release"},
    "trl": {"training"},
    "peft": {"training", "release"},
    "bitsandbytes": {"llm", "training", "release"},
    "datasets": {"core", "training"},
    "modal": {"cloud"},
    "xllamacpp": {"llm", "release"},
    "inspect_ai": {"tribunal"},
    "aiohttp": {"serving"},
}


def unit(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"noesis.{alias.name}" for alias in node.names if node.module == "noesis"}
    return found


def test_imports_point_down():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = []
    for file in SRC.rglob("*.py"):
        own = unit(file)
        for name in imports(file):
            if name.startswith("noesis."):
                other = name.split(".")[1]
                if (
                    other != own
                    and other in level
                    and level[other] >= level[own]
                    and not (level[other] == level[own] == 1)
                ):
                    wrong.append(f"{file.relative_to(SRC)} imports {name}")
        assert own in level, f"{own} has no layer"
    assert wrong == []


def test_heavy_packages_stay_where_the_work_is():
    for file in SRC.rglob("*.py"):
        for name in imports(file):
            allowed = HEAVY.get(name.split(".")[0])
            assert allowed is None or unit(file) in allowed, f"{file} imports {name}"


def test_the_docstring_of_errors_draws_every_class():
    drawn = set(re.findall(r"\b([A-Z]\w+(?:Error|Extra))\b", noesis.core.errors.__doc__ or ""))
    assert set(noesis.core.errors.__all__) <= drawn
    assert all(
        issubclass(getattr(noesis.core.errors, name), noesis.core.errors.NoesisError)
        for name in noesis.core.errors.__all__
    )


def test_help_and_data_commands_load_nothing_heavy():
    for arguments, banned in (
        (["--help"], {"torch", "transformers", "pydantic", "datasets", "rich.console"}),
        (["data", "validate", "--json", "-"], {"torch", "transformers", "datasets"}),
        (
            ["data", "export", "--out", "unused-because-of-a-wrong-language", "--language", "xx"],
            {"torch", "transformers"},
        ),
    ):
        code = f"import sys; from noesis.cli import run_command; run_command({arguments!r}); print('LOADED', *sorted({banned!r} & set(sys.modules)), file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stderr.splitlines()[-1] == "LOADED", done.stderr


def test_constraints_hold_pins_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_no_module_is_long():
    long = {
        str(f.relative_to(SRC)): n
        for f in SRC.rglob("*.py")
        if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
