"""What holds the project together: the direction of imports, the size of files, what commands load, what tests may do."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import noesis.core.errors
from helpers.project import ROOT

SRC = ROOT / "src" / "noesis"
TESTS = ROOT / "tests"
LAYERS = [  # a package imports from layers above its own line, and from itself; never from a neighbour on its line
    {"core"},
    {"constitution", "llm", "planning", "run"},
    {"dataset", "training", "tribunal", "release", "serving", "workspace"},
    {"synthesis", "pipeline"},
    {"api", "cloud"},
    {"cli"},
    {"__main__"},
]
HEAVY = {  # a package that costs seconds or gigabytes: where in src/noesis it may be imported
    "torch": {"llm", "training", "release"},
    "transformers": {"core", "llm", "training", "release"},
    "trl": {"training"},
    "peft": {"llm", "training"},
    "bitsandbytes": {"llm", "training", "release"},
    "datasets": {"training"},
    "modal": {"cloud"},
    "xllamacpp": {"llm", "release"},
    "inspect_ai": {"tribunal"},
    "aiohttp": {"serving"},
}
MAX_LINES, MAX_MODULES = 400, 15


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(tree(file)))


@cache
def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


# --- imports inside src/noesis ------------------------------------------------------------------------------------

Module = tuple[str, ...]  # ("pipeline", "stages", "plan"); a package is its folder, its code is "__init__" in it


@cache
def modules() -> dict[Module, Path]:
    return {file.relative_to(SRC).with_suffix("").parts: file for file in python_files("src/noesis")}


def resolve(dotted: str) -> Module | None:
    """The module that `import noesis.a.b` runs last; None for a name that is no module."""
    parts = tuple(dotted.split(".")[1:])
    for candidate in (parts, (*parts, "__init__")):
        if candidate in modules():
            return candidate
    return None


@cache
def imported(file: Path) -> frozenset[Module]:
    """Modules of src/noesis that a file imports, inside functions too, down to the very file a name comes from."""
    found: set[Module | None] = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {resolve(alias.name) for alias in node.names if alias.name.split(".")[0] == "noesis"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "noesis":
            found |= {resolve(f"{node.module}.{alias.name}") or resolve(node.module) for alias in node.names}
    return frozenset(module for module in found if module)


def external(file: Path) -> Iterator[str]:
    """Top-level names of what a file imports."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_no_import_is_relative():
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in modules().values()
        for node in nodes(file)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_every_package_stands_on_a_layer():
    assert {module[0] for module in modules()} - {"__init__"} == set().union(*LAYERS)


def test_imports_point_to_a_layer_above():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{'/'.join(module)} imports {'.'.join(other)}"
        for module, file in modules().items()
        if module != ("__init__",)  # the public names: see below
        for other in imported(file)
        if other[0] not in (module[0], "__init__") and level[other[0]] >= level[module[0]]
    ]
    assert wrong == []


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reach = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    groups = {frozenset({n, *(m for m in reach[n] if n in reach[m])}) for n in graph if n in reach[n]}
    return sorted(sorted(group) for group in groups)


def test_cycles_finds_a_circle_of_three():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_between_the_files_and_folders_of_any_folder():
    folders = {module[:depth] for module in modules() for depth in range(len(module))}
    wrong = {}
    for folder in folders:
        depth = len(folder)
        graph: dict[str, set[str]] = {m[depth]: set() for m in modules() if m[:depth] == folder}
        for module, file in modules().items():
            if module[:depth] == folder and module != ("__init__",):
                here = {other[depth] for other in imported(file) if other[:depth] == folder}
                graph[module[depth]] |= here - {module[depth]}
        if found := cycles(graph):
            wrong["/".join(folder) or "noesis"] = found
    assert wrong == {}


def test_heavy_packages_stay_where_the_work_is():
    wrong = [
        f"{'/'.join(module)} imports {name}"
        for module, file in modules().items()
        for name in external(file)
        if module[0] not in HEAVY.get(name, {module[0]})
    ]
    assert wrong == []


HTTP_MODULES = {"httpx", "httpx2", "openai", "requests", "urllib3", "urllib.request", "http.client", "aiohttp"}
MAKES_CLIENTS = {  # what each may use of them
    "llm/http.py": {"httpx2", "urllib.request"},  # whether there is a proxy
    "llm/http_reply.py": {"httpx2"},  # the type of a response
    "serving/app.py": {"aiohttp"},
    "serving/relay.py": {"aiohttp"},
    "serving/server.py": {"aiohttp"},
}


def test_http_clients_are_made_in_one_place():
    """Else one would send what is meant for this machine through a proxy, or read a reply without end."""
    wrong = []
    for file in modules().values():
        name = file.relative_to(SRC).as_posix()
        for node in nodes(file):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            used = {module for module in HTTP_MODULES for one in found if f"{one}.".startswith(f"{module}.")}
            wrong += [f"{name} imports {module}" for module in used - MAKES_CLIENTS.get(name, set())]
            if isinstance(node, ast.keyword) and node.arg == "trust_env" and ast.unparse(node.value) != "False":
                wrong.append(f"{name}:{node.value.lineno} takes proxies from the environment")
    assert wrong == []


# --- what packages offer ------------------------------------------------------------------------------------------


def test_the_public_names_are_imported_when_they_are_asked_for():
    body = tree(SRC / "__init__.py").body
    light = {"__future__", "typing", "importlib"}
    for node in body:
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING"
        elif not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"):
            inside = ast.Module([node], [])
            names = {n.module for n in ast.walk(inside) if isinstance(n, ast.ImportFrom)}
            names |= {alias.name for n in ast.walk(inside) if isinstance(n, ast.Import) for alias in n.names}
            assert names <= light, f"noesis/__init__.py:{node.lineno} imports outside __getattr__"
    versions = [n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__"]
    assert [type(value) for value in versions] == [ast.Constant]  # the build reads it without running the file


def test_the_package_itself_uses_no_public_name():
    """`from noesis import Project` inside it would be an import that no other test here sees."""
    names = {
        (str(file.relative_to(SRC)), alias.name)
        for file in modules().values()
        for node in nodes(file)
        if isinstance(node, ast.ImportFrom) and node.module == "noesis"
        for alias in node.names
        if resolve(f"noesis.{alias.name}") is None
    }
    assert {name for _, name in names} <= {"__version__"}, names


def exported(init: Path) -> Iterator[str]:
    """Names that a package's __init__ offers: what it defines, imports from elsewhere, or lists in __all__."""
    for node in tree(init).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (
                alias.asname or alias.name for alias in node.names if resolve(f"{node.module}.{alias.name}") is None
            )
        elif isinstance(node, ast.Assign):
            yield from (n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
            if ast.unparse(node.targets[0]) == "__all__":
                yield from ast.literal_eval(node.value)


def test_a_package_offers_no_name_that_is_one_of_its_files():
    """`noesis.pipeline.demo` would be a function or a module, by the order of imports."""
    wrong = {
        str(init.relative_to(SRC)): clash
        for init in SRC.rglob("__init__.py")
        if (clash := set(exported(init)) & {path.stem for path in init.parent.iterdir()} - {"__init__"})
    }
    assert wrong == {}


def test_every_folder_is_a_package_that_says_in_one_line_what_is_in_it():
    for folder in {file.parent for file in modules().values()}:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} has no __init__.py"
        text = ast.get_docstring(tree(folder / "__init__.py"))
        assert text, f"{folder.relative_to(ROOT)}/__init__.py has no docstring"
        assert re.fullmatch(r".{10,110}\.", text.split("\n")[0]), f"{folder.relative_to(ROOT)}: {text}"


def test_the_trees_of_the_readmes_are_those_of_the_docstrings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["make_tree.py", "--check"])
    main = runpy.run_path(str(ROOT / "docs" / "make_tree.py"))["main"]
    assert main() == 0, capsys.readouterr().err


def test_security_md_lists_the_attacks_of_today():
    command = [sys.executable, str(ROOT / "docs" / "make_attacks.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_docstring_of_errors_draws_every_class():
    drawn = set(re.findall(r"\b([A-Z]\w+(?:Error|Extra))\b", noesis.core.errors.__doc__ or ""))
    assert set(noesis.core.errors.__all__) <= drawn
    assert all(
        issubclass(getattr(noesis.core.errors, name), noesis.core.errors.NoesisError)
        for name in noesis.core.errors.__all__
    )


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["--help"], {"torch", "transformers", "pydantic", "datasets", "rich.console"}),
        (["data", "validate", "--json", "-"], {"torch", "transformers", "datasets"}),
        (["data", "export", "--out", "not-written", "--language", "xx"], {"torch", "transformers"}),
    ],
    ids=["--help", "data validate", "data export"],
)
def test_what_a_command_does_not_load(arguments: list[str], banned: set[str]):
    code = (
        f"import sys; from noesis.cli import run_command; run_command({arguments!r});"
        f" print('LOADED', *sorted({banned!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.splitlines()[-1] == "LOADED", done.stderr


# --- files --------------------------------------------------------------------------------------------------------


def test_no_module_is_long():
    long = {
        str(file.relative_to(ROOT))
        for file in python_files("src", "tests", "benchmarks", "scripts", "docs")
        if file.read_text(encoding="utf-8").count("\n") > MAX_LINES
    }
    assert long == set()


def test_no_folder_is_crowded():
    crowded = {
        str(folder.relative_to(ROOT)): count
        for folder in {file.parent for file in python_files("src", "tests", "benchmarks")}
        if (count := sum(file.name != "__init__.py" for file in folder.glob("*.py"))) > MAX_MODULES
    }
    assert crowded == {}


def splits_jsonl(function: ast.AST) -> bool:
    """Whether one function both splits text with splitlines and reads JSON, or a .jsonl file, with what comes out."""
    text = ast.unparse(function)
    return ".splitlines(" in text and any(word in text for word in ("json.loads", "validate_json", "jsonl"))


def test_no_jsonl_is_read_with_splitlines():
    """It also splits at U+2028, U+0085 and others, which may stand in a JSON string: one row would become two halves."""
    found = {
        file.relative_to(SRC).as_posix()
        for file in modules().values()
        if ".splitlines(" in file.read_text(encoding="utf-8")
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and splits_jsonl(node)
    }
    assert found == set()


def test_constraints_hold_pins_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


# --- tests --------------------------------------------------------------------------------------------------------


def test_no_test_imports_another_test():
    def is_test(name: str) -> bool:
        return any(part == "conftest" or part.startswith("test_") for part in name.split("."))

    wrong = []
    for file in python_files("tests"):
        for node in nodes(file):
            if isinstance(node, ast.Import):
                wrong += [f"{file.name} imports {alias.name}" for alias in node.names if is_test(alias.name)]
            elif isinstance(node, ast.ImportFrom) and node.module and is_test(node.module):
                wrong.append(f"{file.name} imports {node.module}")
    assert wrong == []


def test_names_of_test_files_are_unique():
    names = [file.name for file in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def checks(function: ast.AST, checking: set[str]) -> bool:
    """Whether a function asserts, expects an exception, or calls one that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"raises", "warns", *checking} or name.startswith("assert"):
                return True
    return False


def test_every_test_asserts_something():
    functions = [
        (file, node)
        for file in python_files("tests")
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    helpers = [(file, node) for file, node in functions if not node.name.startswith("test_")]
    checking: set[str] = set()
    while new := {node.name for _, node in helpers if checks(node, checking)} - checking:
        checking |= new
    idle = [
        f"{file.relative_to(TESTS)}::{node.name}"
        for file, node in functions
        if node.name.startswith("test_") and file.name.startswith("test_") and not checks(node, checking)
    ]
    assert idle == []
