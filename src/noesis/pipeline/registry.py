"""The whole pipeline, a function a stage: export → plan → train → choose → judge → merge → gguf → report.

`noesis demo`, the single commands and Modal's functions all call these. A stage finds what it needs in the run directory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from noesis.core.console import heading
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import CheckpointScorer, run_choose
from noesis.pipeline.stages.gguf import run_gguf
from noesis.pipeline.stages.judge import run_judge
from noesis.pipeline.stages.merge import run_merge
from noesis.pipeline.stages.plan import run_plan
from noesis.pipeline.stages.report import run_report
from noesis.pipeline.stages.train import run_train

STAGE_FUNCTIONS: dict[str, Callable[[RunSession], Any]] = {
    "plan": run_plan,
    "train": run_train,
    "choose": run_choose,
    "judge": run_judge,
    "merge": run_merge,
    "gguf": run_gguf,
    "report": run_report,
}


def run_stages(s: RunSession, *, first: int, total: int, hear: CheckpointScorer | None = None) -> None:
    """Every stage after the export, in order, each announced. `hear`: as in `choose`."""
    court = "base against tuned on the held-out examples"
    stages: list[tuple[str, str, Callable[[RunSession], Any]]] = [
        ("plan", "what will be trained, and what it should take", run_plan),
        ("train", "QLoRA, loss on the answers only", run_train),
        ("choose", "which epoch's adapter is used", lambda s: run_choose(s, hear)),
        ("judge", court, run_judge),
        ("merge", "adapter and base into one model", run_merge),
        ("gguf", "for llama.cpp, and does it behave alike?", run_gguf),
        ("report", "one page", run_report),
    ]
    for offset, (name, what, work) in enumerate(stages):
        heading(first + offset, total, name, what)
        work(s)
