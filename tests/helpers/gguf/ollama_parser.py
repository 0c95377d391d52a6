"""How Ollama reads a Modelfile (parser/parser.go of the project), as rules of our own: enough to read what we write.

A command is a word of letters at the start of a line, then its value up to the end of the line at which its quotes are
closed. Quotes hold everything as it is; characters that are not printable, apart from line breaks, spaces and tabs, are
dropped.
"""

from __future__ import annotations

import unicodedata

COMMANDS = {"from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message", "requires"}  # fmt: skip


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) of each command, parameters as `parameter <name>`.

    Raises:
        ValueError: what Ollama would refuse.
    """
    found: list[tuple[str, str]] = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        command, _, rest = line.lstrip(" \t").partition(" ")
        if command.lower() not in COMMANDS:
            raise ValueError(f"no command: {command}")
        name = command.lower()
        if name == "parameter":
            parameter, _, rest = rest.partition(" ")
            if not all(c.isascii() and (c.isalnum() or c == "_") for c in parameter):
                raise ValueError(f"no parameter: {parameter}")
            name = f"parameter {parameter}"
        value = rest
        while (unquoted := unquote(printable(value).strip())) is None:
            following = next(lines, None)
            if following is None:
                raise ValueError(f"the quotes of {command} are never closed")
            value += "\n" + following
        found.append((name, unquoted))
    if not any(name == "from" for name, _ in found):
        raise ValueError("no FROM line")
    return found


def unquote(value: str) -> str | None:
    """None: the quotes are not closed yet."""
    for quote in ('"""', '"'):
        if value.startswith(quote):
            closed = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value


def printable(text: str) -> str:
    """Without what Go's strconv.IsPrint refuses."""
    return "".join(c for c in text if c in " \t\n\r" or unicodedata.category(c)[0] in "LMNPS")
