"""The stages of a run as data: names, order, what each reads, and the files it leaves.

`pipeline/registry.py` binds each name to the function that does the work. Everything that depends on order or
dependencies (staleness, `noesis status`, `noesis verify`, the report, `noesis cloud watch`) reads it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
        needs: stages whose outcome this one reads.
        outputs: patterns of the files it leaves, relative to the run directory.
        derived: those of its files that follow from other stages' results and can be written again at any time; they
            are no part of the stage's digest.
    """

    name: str
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()


SPECS = {
    spec.name: spec
    for spec in (
        StageSpec("export", outputs=("data/*",)),
        StageSpec("plan", needs=("export",)),
        StageSpec("train", needs=("export", "plan"), outputs=("checkpoints/*", "metrics.jsonl")),
        StageSpec("choose", needs=("export", "train"), outputs=("tribunal/checkpoints/*.json",)),
        StageSpec("dial", needs=("export", "choose"), outputs=("dial/*",)),
        StageSpec(
            "judge",
            needs=("export", "choose", "dial"),
            outputs=("tribunal/answers.jsonl", "tribunal/kept.jsonl", "tribunal/summary.json"),
        ),
        StageSpec("merge", needs=("choose", "dial"), outputs=("merged/*",), derived=("merged/*/README.md",)),
        StageSpec("gguf", needs=("export", "merge"), outputs=("gguf/*",)),
        StageSpec(
            "trial",
            needs=("choose", "dial"),
            outputs=("tribunal/trial.json", "tribunal/trial_answers.jsonl", "tribunal/verdicts.jsonl"),
        ),
        StageSpec(
            "report",
            needs=("export", "train", "choose", "dial", "judge", "merge", "gguf", "trial"),
            outputs=("report.html", "tables/*.csv"),
            derived=("report.html", "tables/*.csv"),
        ),
    )
}
STAGES = tuple(SPECS)


def needs_of(stage: str) -> tuple[str, ...]:
    """The stages whose outcome `stage` reads; none for work that is no stage."""
    return SPECS[stage].needs if stage in SPECS else ()


def readers_of(stage: str) -> tuple[str, ...]:
    """The stages that read the outcome of `stage`, in order."""
    return tuple(name for name, spec in SPECS.items() if stage in spec.needs)


def downstream_of(stage: str) -> tuple[str, ...]:
    """The stages that read the outcome of `stage` directly or through others, in order."""
    reached = {stage}
    for name, spec in SPECS.items():  # every stage comes after those that it needs
        if reached & set(spec.needs):
            reached.add(name)
    return tuple(name for name in STAGES if name in reached - {stage})


def is_derived(stage: str, file: str) -> bool:
    """Whether `file` (relative to the run directory) is one of the derived files of `stage`."""
    return stage in SPECS and any(fnmatchcase(file, pattern) for pattern in SPECS[stage].derived)
