"""Write docs/cli.md, docs/cli.pt-BR.md, docs/agents.md and the manual page docs/noesis.1 from the command line itself.

`make docs` runs it; --check only compares.

The wheel installs the manual page, so that `man noesis` finds it where a shell finds `noesis`. Page: man 7 man
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer.main

from noesis import __version__
from noesis.cli import app
from noesis.cli.reference.agents import agent_docs
from noesis.cli.reference.commands import ENVIRONMENT, EXIT_CODES, Command, commands
from noesis.core.i18n import speak

DOCS = Path(__file__).parent
SUMMARY = "turn a constitution and about a hundred examples into a small language model that keeps to them"
HEADS = {
    "en": "Command line\n\nEvery command with its help, as the program prints it; made by `make docs`.",
    "pt": "Linha de comando\n\nTodos os comandos com a ajuda que o programa mostra; feita por `make docs`.",
}


def markdown(found: list[Command], head: str) -> str:
    """docs/cli.md, or its translation."""
    parts = [f"## {section.name}\n\n```\n{section.help}\n```\n" for section in found]
    return f"# {head}\n\n" + "\n".join(parts)


def manual(found: list[Command]) -> str:
    """A manual page in roff; each command's help stands as the program prints it."""
    lines = [f'.TH NOESIS 1 "" "noesis {__version__}" "User Commands"', ".SH NAME", f"noesis \\- {SUMMARY}"]
    lines += [".SH SYNOPSIS", ".B noesis", ".I COMMAND", "[OPTIONS] [ARGUMENTS]", ".SH COMMANDS"]
    for section in found[1:]:
        lines += [f".SS {_roff(section.name)}", ".nf", *map(_roff, section.help.split("\n")), ".fi"]
    for heading, entries in (("ENVIRONMENT", ENVIRONMENT), ("EXIT STATUS", EXIT_CODES)):
        lines.append(f".SH {heading}")
        for name, meaning in entries.items():
            lines += [".TP", f".B {_roff(name)}", _roff(meaning)]
    return "\n".join(lines) + "\n"


def _roff(line: str) -> str:
    """A line as roff prints it unchanged."""
    line = line.replace("\\", "\\e").replace("-", "\\-")
    line = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in line)
    return "\\&" + line if line[:1] in (".", "'") else line


def main() -> int:
    """Write or compare."""
    root, found = {}, {}
    for code in ("pt", "en"):
        speak(code)
        root[code] = typer.main.get_command(app)
        found[code] = list(commands(root[code]))
    pages = {
        "cli.md": markdown(found["en"], HEADS["en"]),
        "cli.pt-BR.md": markdown(found["pt"], HEADS["pt"]),
        "noesis.1": manual(found["en"]),
        "agents.md": agent_docs(root["en"]),
    }
    for name, text in pages.items():
        file = DOCS / name
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            print(f"docs/{name} is stale: run  make docs", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
