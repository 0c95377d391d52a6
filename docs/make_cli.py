"""Write docs/cli.md, docs/cli.pt-BR.md and the manual page docs/noesis.1 from the command line itself: `make docs`.

--check only compares.

The wheel installs the manual page, so that `man noesis` finds it where a shell finds `noesis`. Page: man 7 man
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer.main

from noesis import __version__
from noesis.cli import app
from noesis.core.i18n import speak

PAGE, PAGE_PT = Path(__file__).with_name("cli.md"), Path(__file__).with_name("cli.pt-BR.md")
MANUAL = Path(__file__).with_name("noesis.1")
SUMMARY = "turn a constitution and about a hundred examples into a small language model that keeps to them"
ENVIRONMENT = {
    "NOESIS_PROJECT": "The project's folder, unless --project gives one; else the nearest at or above this folder.",
    "NOESIS_LANG": "The language that is spoken, pt or en, unless --lang gives one; else that of the locale.",
    "NOESIS_API_KEY": "The key of noesis serve; what is set here is never printed.",
    "NOESIS_CACHE": "Where converted models and judges' replies are kept; default: ~/.cache/noesis.",
    "NOESIS_KEY_<HOST>": "The key of a judge's endpoint at that host.",
    "HF_TOKEN": "For models on the Hugging Face Hub whose licence must be accepted.",
}
EXIT_CODES = {
    "0": "Done; for noesis judge: APPROVED.",
    "1": "Failed.",
    "2": "A wrong argument, or a file that is missing.",
    "3": "REJECTED.",
    "4": "CONDITIONAL or UNDECIDED.",
    "5": "Stopped at the agreed cap; a higher one continues.",
    "130, 143": "Interrupted; the same command continues.",
}


class Section(NamedTuple):
    """A command and its help."""

    command: str
    help: str


def sections(command: object, name: str, parent: object = None) -> Iterator[Section]:
    """The help of a command and of those below it."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = 100
    yield Section(context.command_path, command.get_help(context))
    for child in getattr(command, "commands", {}).values():
        yield from sections(child, child.name, context)


def markdown(found: list[Section], head: str) -> str:
    """docs/cli.md, or its translation."""
    parts = [f"## {section.command}\n\n```\n{section.help}\n```\n" for section in found]
    return f"# {head}\n\n" + "\n".join(parts)


def manual(found: list[Section]) -> str:
    """A manual page in roff; each command's help stands as the program prints it."""
    lines = [f'.TH NOESIS 1 "" "noesis {__version__}" "User Commands"', ".SH NAME", f"noesis \\- {SUMMARY}"]
    lines += [".SH SYNOPSIS", ".B noesis", ".I COMMAND", "[OPTIONS] [ARGUMENTS]", ".SH COMMANDS"]
    for section in found[1:]:
        lines += [f".SS {_roff(section.command)}", ".nf", *map(_roff, section.help.split("\n")), ".fi"]
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
    help_in = {}
    for code in ("pt", "en"):
        speak(code)
        help_in[code] = list(sections(typer.main.get_command(app), "noesis"))
    pages = {
        PAGE: markdown(help_in["en"], "Command line\n\nMade from the program by `make docs`."),
        PAGE_PT: markdown(help_in["pt"], "Linha de comando\n\nFeita a partir do programa por `make docs`."),
        MANUAL: manual(help_in["en"]),
    }
    for file, text in pages.items():
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            print(f"docs/{file.name} is stale: run  make docs", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
