"""Write the list of attacks into SECURITY.md from the tests of tests/hostile: `make docs`; --check only compares."""

from __future__ import annotations

import ast
import contextlib
import io
import sys
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "SECURITY.md"
BEGIN, END = "<!-- attacks -->", "<!-- /attacks -->"  # written between these by this file


class Collected:
    """A pytest plugin that keeps what was collected: (file, test, case; "" where a test has one case)."""

    def __init__(self) -> None:
        self.cases: list[tuple[Path, str, str]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            name, _, case = item.name.partition("[")
            self.cases.append((item.path, name, case.removesuffix("]")))


def sentence(name: str) -> str:
    """A test's name as words."""
    return name.removeprefix("test_").replace("_", " ")


def block(cases: list[tuple[Path, str, str]]) -> str:
    """The list between its markers: a section a file, a line a test, its cases behind it."""
    lines = [
        BEGIN,
        f"{len(cases)} cases, variants of the same attack counted; each is a test that `make test` runs; all held.",
    ]
    for file, group in groupby(sorted(cases, key=lambda case: case[0]), key=lambda case: case[0]):
        tests: dict[str, list[str]] = {}
        for _, name, case in group:
            tests.setdefault(name, []).append(case)
        title = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n", 1)[0].rstrip(".")
        lines += ["", f"### {title}", "", f"`{file.relative_to(ROOT).as_posix()}`, {sum(map(len, tests.values()))}", ""]
        for name, found in tests.items():
            shown = [" ".join(case.split()).replace("<", "&lt;").replace("|", "\\|") for case in found if case]
            lines.append(f"- {sentence(name)}" + (f": {'; '.join(shown)}" if shown else ""))
    return "\n".join([*lines, END])


def main() -> int:
    """Write or compare."""
    collected = Collected()
    command = [
        str(ROOT / "tests" / "hostile"),
        "--collect-only",
        "-qqq",
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(command, plugins=[collected])
    if code != 0:
        print("tests/hostile can't be collected", file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    now = head + block(collected.cases) + rest.split(END)[1]
    if "--check" in sys.argv:
        if now != page:
            print("SECURITY.md: the list of attacks is stale: run  make docs", file=sys.stderr)
        return int(now != page)
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
