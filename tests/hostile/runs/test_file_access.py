"""Files are written, moved and deleted in one place: what goes past it would follow a stranger's links."""

from __future__ import annotations

import ast

import pytest

from helpers.project import ROOT

SRC = ROOT / "src" / "noesis"
ALLOWED = {
    "core/files.py",  # the one place,
    "core/rooted.py",  # and what it is made of
    "core/machine/streams.py",  # opens the null device
    "llm/from_gguf/dequantise.py",  # links to the user's own file, in a scratch folder of the cache
    "training/backends/unsloth_worker.py",  # runs in another environment, without this package
}
FUNCTIONS = {
    "os": {"replace", "rename", "renames", "unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "link",
           "symlink", "truncate", "chmod", "chown", "utime", "open", "mkfifo"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "copymode", "copystat",
               "unpack_archive", "make_archive"},
}  # fmt: skip
METHODS = {  # of a path; `replace` and `rename` take one argument, unlike those of a text
    "unlink", "rmdir", "mkdir", "touch", "write_text", "write_bytes", "symlink_to", "hardlink_to", "chmod", "rename",
}  # fmt: skip


def violations(code: str) -> list[str]:
    """Calls that write, move or delete by a name."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        function, arguments = call.func, len(call.args) + len(call.keywords)
        owner = (
            function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        )
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        in_a_module = name in FUNCTIONS.get(owner, ())
        of_a_path = owner not in FUNCTIONS and isinstance(function, ast.Attribute)
        of_a_path = of_a_path and (name in METHODS or (name == "replace" and arguments == 1 and not call.keywords))
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        opened = name == "open" and any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
        if in_a_module or of_a_path or opened:
            found.append(f"{call.lineno}: {ast.unparse(call)[:60]}")
    return found


@pytest.mark.parametrize(
    "code",
    ["os.replace(a, b)", "shutil.rmtree(a)", "a.unlink()", "a.replace(b)", "(a / 'b').write_text('')", "open(a, 'w')",
     "open(a, mode='ab')", "a.open('r+')", "os.open(a, 0)", "a.mkdir(parents=True)", "shutil.copyfileobj(a, b)"],
)  # fmt: skip
def test_the_search_finds_it(code: str):
    assert violations(code)


@pytest.mark.parametrize(
    "code", ["'a'.replace('b', 'c')", "open(a)", "open(a, 'rb')", "now.replace(hour=0)", "move(a, b)"]
)
def test_the_search_finds_nothing_else(code: str):
    assert violations(code) == []


def test_files_are_written_moved_and_deleted_in_one_place():
    found = {
        name: wrong
        for file in sorted(SRC.rglob("*.py"))
        if (name := file.relative_to(SRC).as_posix()) not in ALLOWED
        and (wrong := violations(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_nothing_is_imported_from_these_modules_under_another_name():
    wrong = [
        f"{file.relative_to(SRC)}: from {node.module} import {alias.name}"
        for file in sorted(SRC.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in FUNCTIONS
        for alias in node.names
        if alias.name in FUNCTIONS[node.module]
    ]
    assert wrong == []


READS_RUNS = (
    "run",
    "pipeline",
    "cloud/volume",
    "cloud/container",
    "cloud/pull.py",
    "training/state",
    "release/provenance.py",
)
OWN_FILES = {"TEMPLATE", "config_file"}  # the report's template; what PEFT has written a moment before


def test_files_of_a_run_are_read_by_functions_that_open_plain_files_alone():
    """`Path.read_text` and `open` would wait for a pipe, and follow a link that was made after the run was opened."""
    found = [
        f"{name}:{call.lineno}"
        for file in sorted(SRC.rglob("*.py"))
        if (name := file.relative_to(SRC).as_posix()).startswith(READS_RUNS)
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and (
            (isinstance(call.func, ast.Name) and call.func.id == "open")
            or (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in ("read_text", "read_bytes", "open")
                and ast.unparse(call.func.value) not in OWN_FILES
            )
        )
    ]
    assert found == []
