"""Every command with its help, the environment variables and the exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WIDTH = 100  # columns of the help
ENVIRONMENT = {
    "NOESIS_PROJECT": "The project's folder, unless --project gives one; else the nearest at or above this folder.",
    "NOESIS_LANG": "The language that is spoken, pt or en, unless --lang gives one; else that of the locale.",
    "NOESIS_API_KEY": "The key that the server asks for; what is set here is never printed.",
    "NOESIS_CACHE": "Where converted models and judges' replies are kept; default: ~/.cache/noesis.",
    "NOESIS_KEY_<HOST>": "The key of a judge's endpoint at that host.",
    "OMP_NUM_THREADS": "Threads at most of PyTorch and of llama.cpp; default: the cores.",
    "HF_TOKEN": "For models on the Hugging Face Hub whose licence must be accepted.",
}
EXIT_CODES = {
    "0": "Done; of a judgement: APPROVED.",
    "1": "Failed.",
    "2": "A wrong argument, or a file that is missing.",
    "3": "REJECTED.",
    "4": "CONDITIONAL or UNDECIDED.",
    "5": "Stopped at the agreed cap; a higher one continues.",
    "130, 143": "Interrupted; the same command continues.",
}


@dataclass(frozen=True)
class Command:
    """A command as it is typed.

    Attributes:
        name: `noesis data validate`.
        help: what `--help` prints.
        summary: the first paragraph of its description.
        example: the last line of its description, `noesis …`.
        parameters: its arguments, then its options, each as in the help, with what it is for.
        group: whether it only holds other commands.
    """

    name: str
    help: str
    summary: str
    example: str
    parameters: tuple[tuple[str, str], ...]
    group: bool


def commands(command: Any, name: str = "noesis", parent: Any = None) -> Iterator[Command]:
    """A command of typer's and those below it, as `--help` lists them."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = WIDTH
    described = command.help or ""
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    below = getattr(command, "commands", {})
    yield Command(
        name=context.command_path,
        help=command.get_help(context),
        summary=" ".join(described.split("\n\n")[0].split()),
        example=" ".join(described.partition("Example: ")[2].split()),
        parameters=tuple(record for record in records if record is not None),
        group=bool(below),
    )
    for child in below.values():
        yield from commands(child, child.name, context)
