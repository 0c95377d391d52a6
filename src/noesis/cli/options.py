"""Options and small helpers that the commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from noesis.core.errors import UsageError
from noesis.core.i18n import SPOKEN, _, speak, spoken

if TYPE_CHECKING:
    from noesis.core.config import ModalSection
    from noesis.core.project import Project
    from noesis.workspace.doctor import Check

ProjectOption = Annotated[
    Path | None,
    typer.Option(
        "--project",
        metavar="DIR",
        help="Project folder; default: $NOESIS_PROJECT, else the nearest one at or above this folder.",
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run directory; default: runs/<output_name> in the project."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/demo.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON to stdout and everything else to stderr.")
]
AgainOption = Annotated[bool, typer.Option("--again", help="Repeat the stage even if it is done.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start a new run; the old one is moved to .archive/, nothing is deleted.")
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Base model: smollm2, a folder, a .gguf file, or a name on the Hugging Face Hub.",
    ),
]
ExamplesLanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="CODE",
        help="Train on the project's examples in this language, or both; default: demo: language in "
        "training_config.yaml.",
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs", min=1, metavar="N", help="Passes over the examples (dpo: over the pairs; sft+dpo: of the SFT part)."
    ),
]
MaxExamplesOption = Annotated[
    int | None, typer.Option("--max-examples", min=1, metavar="N", help="Train on only N of the examples.")
]
MethodOption = Annotated[
    Literal["sft", "dpo", "sft+dpo", "distill"] | None,
    typer.Option(
        "--method",
        help="sft trains on the examples, dpo on pairs of a weak and a revised answer, sft+dpo on one after the "
        "other, distill on the model's own answers as the base scores them that reads critique and revision; "
        "default: as in training_config.yaml.",
    ),
]
KlWeightOption = Annotated[
    float | None,
    typer.Option(
        "--kl-weight",
        min=0.0,
        metavar="X",
        help="Against forgetting: hold the model to the base (KL) on replayed rows, which the base writes where no "
        "file is named; 1 is a start, 0 off; default: replay.kl_weight in training_config.yaml.",
    ),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        min=1,
        max=16,
        metavar="N",
        help="Train N adapters, of the configured seed and those after it, so that every result has its spread between "
        "seeds; on a GPU they share their passes over the base; default: seeds in training_config.yaml.",
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        help="Use the adapter at this strength: its update of the base times X, 1 as trained; default: the largest "
        "that loses no more than max_forgetting.",
    ),
]
MaxUsdOption = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0.01,
        metavar="USD",
        help="Stop before the whole run, restarts included, costs more than this; default: budget.max_usd in "
        "training_config.yaml.",
    ),
]
MaxMinutesOption = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        min=0.01,
        metavar="MINUTES",
        help="Stop before the whole run, restarts included, takes longer than this; default: budget.max_minutes in "
        "training_config.yaml.",
    ),
]

JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="SPEC",
        help="Judge model: openai:BASE_URL:MODEL, gguf:PATH, or self (the run's own base); with --ask score also "
        "torch:NAME; may be repeated.",
    ),
]
AskOption = Annotated[
    Literal["quote", "score", "both"] | None,
    typer.Option(
        "--ask",
        help="How: the judge quotes evidence for each item; its score is read from the next word's probabilities; or "
        "both, where what decides is quoted. Default: tribunal: ask.",
    ),
]
GateOption = Annotated[
    bool,
    typer.Option("--gate", help="Exit with the verdict's code: 0 APPROVED, 3 REJECTED, 4 CONDITIONAL or UNDECIDED."),
]
PartOption = Annotated[
    Literal["dev", "locked", "all"],
    typer.Option("--part", help="Part of the Tribunal's suite; each use of the locked part is logged."),
]
JudgesMaxUsdOption = Annotated[
    float | None,
    typer.Option(
        "--max-usd",
        min=0,
        metavar="USD",
        help="Stop before judges cost more than this; needs tribunal: prices in training_config.yaml.",
    ),
]


def speak_as_asked(arguments: list[str]) -> list[str]:
    """Speak the language of `--lang`, wherever it stands, else what the environment asks for; the other arguments.

    Raises:
        UsageError: a language that is not spoken.
    """
    rest, code = list(arguments), spoken()
    for place, word in enumerate(rest):
        name, _equals, value = word.partition("=")
        if word == "--" or (name == "--lang" and not value and place + 1 == len(rest)):
            break
        if name == "--lang":
            code = value or rest[place + 1]
            del rest[place : place + (1 if value else 2)]
            break
    if code not in SPOKEN:
        raise UsageError(_("--lang {code!r}: Noesis speaks {languages}", code=code, languages=", ".join(SPOKEN)))
    speak(code)
    return rest


def reserve_stdout(as_json: bool) -> None:
    """With --json, keep stdout for the result and print everything else to stderr."""
    if as_json:
        from noesis.core.console import use_stderr

        use_stderr()


def print_result(value: Any, as_json: bool) -> None:
    """With --json, print the command's result."""
    if as_json:
        from noesis.core.console import print_json

        print_json(value)


def show_manifest_hash(run: Path) -> None:
    """Print the command by which a run can be recognised later, whoever had it meanwhile."""
    from noesis.core.console import command, say
    from noesis.core.files import sha256_file

    kept = command("verify", run, "--sha256", sha256_file(run / "manifest.json"))
    say(_("Keep     {kept}", kept=kept))
    say(_("         shows later whether anything was rewritten, the manifest included"))


def report_checks(checks: Sequence[Check], as_json: bool) -> None:
    """Print each check, with the remedy where it failed.

    Raises:
        typer.Exit: code 1 if something needed is missing.
    """
    from noesis.core.console import say

    for check in checks:
        state = "ok" if check.ok else _("MISSING") if check.needed else "–"
        say(f"  {state:7}  {check.name}: {check.found}")
        if not check.ok:
            say(_("           what to do: {remedy}", remedy=check.remedy))
    print_result([vars(c) for c in checks], as_json)
    if any(not c.ok and c.needed for c in checks):
        raise typer.Exit(1)


def modal_section(project: Path | None) -> tuple[Project, ModalSection]:
    """The project, and `modal:` of its training_config.yaml.

    Raises:
        MissingExtra: the package modal is not installed.
    """
    import importlib.util

    from noesis.core.config import load_config
    from noesis.core.errors import MissingExtra
    from noesis.core.project import find_project

    if importlib.util.find_spec("modal") is None:
        raise MissingExtra("modal", "modal")
    found = find_project(project)
    return found, load_config(found).training.modal
