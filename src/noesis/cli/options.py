"""Options and small helpers that the commands share."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ProjectOption = Annotated[
    Path | None,
    typer.Option("--project", metavar="DIR", help="Project folder; default: the nearest one at or above here."),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="Run directory; default: runs/<output_name> of the project.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/demo.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; talk goes to stderr.")]
AgainOption = Annotated[bool, typer.Option("--again", help="Do it again though it is done.")]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="sft: the examples; dpo: pairs of a weak and a revised answer; sft+dpo: both in turn; default: the YAML's.",
    ),
]
MaxUsdOption = Annotated[
    float | None,
    typer.Option(min=0.01, metavar="USD", help="The run may cost this much in all, across restarts; default: 90."),
]
MaxMinutesOption = Annotated[
    float | None, typer.Option(min=0.01, metavar="N", help="The run may take this long in all, across restarts.")
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start anew; the old run is moved to .archive/, nothing is deleted.")
]

JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="SPEC",
        help="openai:BASE_URL:MODEL, gguf:PATH, or self (the run's own base); may be given several times.",
    ),
]
GateOption = Annotated[
    bool,
    typer.Option(
        "--gate", help="End with the verdict's exit code: 0 APPROVED, 3 REJECTED, 4 CONDITIONAL or UNDECIDED."
    ),
]
PartOption = Annotated[str, typer.Option("--part", help="dev, locked or all; each use of the locked part is logged.")]
JudgesMaxUsdOption = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0,
        help="Stop before judges cost more than this; needs tribunal: prices in training_config.yaml.",
    ),
]


def checked_part(part: str) -> Any:
    """`part`, if there is such a one."""
    from noesis.core.errors import UsageError

    if part not in ("dev", "locked", "all"):
        raise UsageError(f"--part {part!r}: choose dev, locked or all")
    return part


def configured(
    project: Path | None,
    model: str | None,
    epochs: int | None,
    max_examples: int | None,
    as_json: bool,
    *,
    max_usd: float | None = None,
    max_minutes: float | None = None,
    method: str | None = None,
) -> tuple[Any, Any]:
    """The project, and its configuration with the options laid over it; epochs: of the only part, of `sft+dpo` the first."""
    from noesis.core.config import load_config
    from noesis.core.project import find_project

    send_output_to(as_json)
    found = find_project(project)
    overrides = {"training.model": model, "training.method": method, "max_examples": max_examples}
    only = epochs is not None and load_config(found, {"training.method": method}).training.method == "dpo"
    overrides["training.dpo.epochs" if only else "training.num_train_epochs"] = epochs
    return found, load_config(
        found, overrides | {"training.budget.max_usd": max_usd, "training.budget.max_minutes": max_minutes}
    )


def send_output_to(as_json: bool) -> None:
    if as_json:
        from noesis.core.console import use_stderr

        use_stderr()


def print_result(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def program() -> str:
    """This program as one would type it here: its path where the environment is not activated."""
    return "noesis" if shutil.which("noesis") else shown(Path(sys.argv[0]).absolute())


def shown(path: Path) -> str:
    """A path as one would type it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
