"""`noesis agent-docs`: what an assistant needs to drive Noesis, in one Markdown text.

The rules and recipes stand in agents.md beside this file, and tests run the recipes. Stages, commands, variables and
exit codes are read from the program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.cli.reference.commands import ENVIRONMENT, EXIT_CODES, Command, commands
from noesis.run.stages import SPECS

TEMPLATE = Path(__file__).with_name("agents.md")


def agent_docs(root: Any) -> str:
    """The text. `root`: typer's command `noesis`."""
    text = TEMPLATE.read_text(encoding="utf-8")
    tables = {
        "stages": "\n".join(
            f"| {spec.name} | {', '.join(spec.needs) or '-'} | {' '.join(f'`{o}`' for o in spec.outputs) or '-'} |"
            for spec in SPECS.values()
        ),
        "commands": "\n".join(_entry(command) for command in commands(root) if not command.group),
        "environment": "\n".join(f"- `{name}`: {meaning}" for name, meaning in ENVIRONMENT.items()),
        "exit codes": "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items()),
    }
    for name, table in tables.items():
        text = text.replace(f"<!-- {name} -->", table)
    return text


def _entry(command: Command) -> str:
    """A command's lines: what it does, what it takes, an example."""
    takes = [f"`{parameter}`" for parameter, _ in command.parameters if not parameter.startswith("-h")]
    lines = [f"- **`{command.name}`** {command.summary}"]
    lines += [f"  Takes {', '.join(takes)}."] if takes else []
    return "\n".join([*lines, f"  Example: `{command.example}`"])
