"""Write the tree of src/noesis into both READMEs from the packages' docstrings: `make docs`; --check only compares."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "noesis"
PAGES = ("README.md", "README.pt-BR.md")
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"  # written between these by this file
ORDER = (  # from the ground up, as the imports go
    *("core", "constitution", "llm", "run", "planning"),
    *("dataset", "training", "tribunal", "release", "serving", "workspace"),
    *("synthesis", "pipeline", "api", "cloud", "cli"),
)
COLUMN = 24  # where the descriptions begin


def summary(folder: Path) -> str:
    """The first line of a package's docstring. Raises: SystemExit where a package has none."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    if not text:
        sys.exit(f"{folder.relative_to(ROOT)}/__init__.py has no docstring: say in one line what is in it")
    return text.split("\n", 1)[0]


def packages(folder: Path) -> list[Path]:
    """The packages directly inside a folder, by name."""
    return sorted(file.parent for file in folder.glob("*/__init__.py"))


def lines(folder: Path, depth: int) -> list[str]:
    """A folder's line, then its sub-folders'."""
    name = "  " * depth + folder.name + "/"
    below = packages(folder)
    if folder == PACKAGE:
        below.sort(key=lambda child: (ORDER.index(child.name) if child.name in ORDER else len(ORDER), child.name))
        name = "src/noesis/"
    return [f"{name:<{COLUMN}}{summary(folder)}", *(line for child in below for line in lines(child, depth + 1))]


def block() -> str:
    """The tree between its two markers."""
    return "\n".join([BEGIN, "```", *lines(PACKAGE, 0), "```", END])


def filled(page: str, name: str) -> str:
    """A page with the tree of today. Raises: SystemExit where the page lacks the markers."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        sys.exit(f"{name} needs one line {BEGIN!r} and one {END!r}")
    head, rest = page.split(BEGIN)
    return head + block() + rest.split(END)[1]


def main() -> int:
    """Write or compare."""
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        now = filled(page, name)
        if "--check" not in sys.argv:
            (ROOT / name).write_text(now, encoding="utf-8")
        elif now != page:
            stale.append(name)
    if stale:
        print(f"{' and '.join(stale)}: the tree is stale: run  make docs", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
