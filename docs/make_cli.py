"""Write docs/cli.md from the command line itself: `make docs`; with --check only compare (a test does)."""

from __future__ import annotations

import sys
from pathlib import Path

import typer.main

from noesis.cli import app

TARGET = Path(__file__).with_name("cli.md")


def sections(command: object, name: str, parent: object = None) -> list[str]:
    """The help of a command and of those below it."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = 100
    text = [f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    for child in getattr(command, "commands", {}).values():
        text += sections(child, child.name, context)
    return text


def main() -> int:
    """Write or compare."""
    page = "# Command line\n\nMade from the program by `make docs`.\n\n" + "\n".join(
        sections(typer.main.get_command(app), "noesis")
    )
    if "--check" in sys.argv:
        if TARGET.read_text(encoding="utf-8") != page:
            print("docs/cli.md is stale: run  make docs", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
