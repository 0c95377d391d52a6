"""What is done with a trained run: `judge`, `merge`, `export_gguf`, `certify`, `report`, `push`.

Each takes the run, or its folder, and does nothing again that is done; `again=True` repeats it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.libraries import silence_libraries
from noesis.core.project import Project, find_project
from noesis.llm.addresses import spare_loopback_from_proxies
from noesis.pipeline.comparison.table import compare_runs_side_by_side, project_or_none
from noesis.pipeline.consent import judges_to_ask
from noesis.pipeline.publish.contents import PushOptions
from noesis.pipeline.publish.push import PushResult
from noesis.pipeline.publish.push import push as publish
from noesis.pipeline.results import TrialResult
from noesis.pipeline.session import RunSession, locked_session, reopen_run
from noesis.pipeline.stages.against import AgainstResult, run_against
from noesis.pipeline.stages.gguf import parity, run_gguf
from noesis.pipeline.stages.judge import run_judge
from noesis.pipeline.stages.merge import run_merge
from noesis.pipeline.stages.report import run_report
from noesis.pipeline.stages.trial import TrialRequest, run_trial
from noesis.release.gguf.quantize import KINDS
from noesis.release.merge_weights import MergeResult
from noesis.release.parity.certificate import Certificate
from noesis.run.directory import Run
from noesis.tribunal.heldout import JudgeResult
from noesis.tribunal.suite import Part

AnyRun = Run | str | Path
Ask = Literal["quote", "score", "both"]


def judge(
    run: AnyRun,
    judges: Sequence[str] | None = None,
    *,
    part: Part = "dev",
    prompts: int | None = None,
    ask: Ask | None = None,
    max_usd: float | None = None,
    project: Project | None = None,
    again: bool = False,
) -> JudgeResult | TrialResult:
    """Compare the tuned model with its base on the held-out examples and, with judges, before the Tribunal.

    >>> result = noesis.judge(run)
    >>> result.preference.tuned.held_out_loss < result.preference.base.held_out_loss
    True
    >>> result.court.verdict
    'UNDECIDED'

    Args:
        judges: SPECs such as `openai:https://api.openai.com/v1:gpt-5-mini`, `gguf:PATH`, `self`; default: those that
            the run was made with; there need be none.
        part: of the Tribunal's suite; each use of the locked part is logged.
        prompts: use only so many, evenly spread.
        ask: whether judges quote evidence, are read, or both; default: as configured.
        max_usd: stop before the judges cost more than this.
        project: whose suite and rubrics; default: as `load_project` finds it.

    Returns:
        the trial's result where there are judges; its `court` holds the verdict.

    Raises:
        UsageError: a SPEC that is not understood, or judges that only a stranger's run names.
        CapError: the cap is reached; a higher one goes on.
    """
    with session_of(run) as s:
        folder = None if project is None else project.root
        named = judges_to_ask(s.run.path, s.config, judges, folder)
        result: JudgeResult | TrialResult = run_judge(s, project=project_or_none(folder), again=again)
        if named:
            request = TrialRequest(named, part, prompts, max_usd, ask)
            result = run_trial(s, find_project(folder), request, again=again)
    return result


def judge_against(
    run: AnyRun,
    other: AnyRun,
    judges: Sequence[str] | None = None,
    *,
    part: Part = "dev",
    prompts: int | None = None,
    ask: Ask | None = None,
    max_usd: float | None = None,
    project: Project | None = None,
) -> AgainstResult:
    """Have the judges score the tuned model of another run in place of the base: a comparison, and no verdict.

    Args:
        as of `judge`.

    Raises:
        UsageError: no judge is named.
    """
    with session_of(run) as s:
        folder = None if project is None else project.root
        named = judges_to_ask(s.run.path, s.config, judges, folder)
        if not named:
            raise UsageError(_("--against compares by judges: name one with --judge"))
        request = TrialRequest(named, part, prompts, max_usd, ask)
        return run_against(s, reopen_run(folder_of(other)), find_project(folder), request)


def merge(run: AnyRun, *, original: bool = False, again: bool = False) -> MergeResult:
    """Merge adapter and base into one standalone model (safetensors).

    >>> merged = noesis.merge(run)
    >>> (run.merged / "model.safetensors").is_file()
    True

    Args:
        original: merge into the base's original weights, even if it was trained on dequantised ones.
    """
    with session_of(run) as s:
        return run_merge(s, again=again, original=original)


def export_gguf(
    run: AnyRun,
    kinds: Sequence[str] | None = None,
    *,
    adapter: bool = False,
    outfile: str | Path | None = None,
    again: bool = False,
) -> Certificate:
    """Write GGUF files for llama.cpp and Ollama, and certify that they behave like the trained model.

    >>> certificate = noesis.export_gguf(run, ["f16"])
    >>> certificate.files["f16"].passed
    True

    Args:
        kinds: of `f32`, `f16`, `q8_0`, `q4_k_m`; default: as configured.
        adapter: also write the adapter alone, for a GGUF file of its base.
        outfile: where to copy the one file asked for.

    Raises:
        UsageError: an unknown kind.
        RunError: the run is not merged.
        ParityError: a file does not behave like what was trained; it is renamed to *.rejected.gguf.
    """
    wanted = known_kinds(kinds) if kinds else None
    with session_of(run) as s:
        if outfile is not None and wanted is None:
            wanted = (s.config.training.gguf.quantizations[0],)
        target = None if outfile is None else Path(outfile)
        return run_gguf(s, kinds=wanted, adapter=adapter, again=again, outfile=target)


def known_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of GGUF files, each once. Raises UsageError for an unknown one."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(_("--quant {kind!r} is not known; choose from {kinds}", kind=kind, kinds=", ".join(KINDS)))
    return tuple(dict.fromkeys(kinds))


def certify(run: AnyRun) -> Certificate:
    """Measure the run's GGUF files again; the new certificate replaces the old one.

    >>> noesis.certify(run).files["f16"].passed
    True

    Raises:
        RunError, ParityError: as `export_gguf`.
    """
    with session_of(run) as s:
        return parity(s)


def report(run: AnyRun, beside: Sequence[AnyRun] = (), *, project: Project | None = None) -> Path:
    """Write the run's report again, one HTML page that works offline, and return its path.

    >>> noesis.report(run).name
    'report.html'

    Args:
        beside: runs to show beside it.
    """
    with session_of(run) as s:
        found = project_or_none(None if project is None else project.root)
        others = [folder_of(other) for other in beside]
        comparison = compare_runs_side_by_side([s.run.path, *others], found) if others else None
        return run_report(s, comparison)


def push(
    run: AnyRun,
    repo: str,
    *,
    public: bool = False,
    allow: Collection[str] = (),
    dataset: str | None = None,
    dataset_licence: str | None = None,
    licence_file: str | Path | None = None,
) -> PushResult:
    """Publish the run on the Hugging Face Hub: adapter, merged model, GGUF files and card, in one commit.

    The token is HF_TOKEN, or the one of `hf auth login`. The same call goes on after an interruption.

    >>> noesis.push(run, "my-philosopher")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    noesis.core.errors.RunError: runs/mine has the verdict UNDECIDED (no judge …), so it is not pushed; …

    Args:
        repo: `owner/name`, or `name` for one's own account.
        public: let everyone see it.
        allow: of `undecided`, `conditional`, `rejected`, `uncertified`: push although it is that.
        dataset: a repository for the run's examples, with their cards; default: they stay here.
        dataset_licence: as the Hub names it, such as `cc-by-4.0`.
        licence_file: the text of the base's licence, where the model's folder lacks it.

    Raises:
        RunError: the run is not merged, approved or certified, or its files were changed.
        UsageError: the name is taken, or forbidden by the base's licence; no token.
        ModelError: the Hub refuses, or can't be reached.
    """
    options = PushOptions(
        repo,
        public=public,
        allow=tuple(allow),
        dataset=dataset,
        dataset_licence=dataset_licence,
        licence_file=None if licence_file is None else Path(licence_file),
    )
    try:
        return publish(folder_of(run), options)
    finally:
        if isinstance(run, Run):
            run.refresh()


def folder_of(run: AnyRun) -> Path:
    """The folder of a run that is given as such or by its folder."""
    return run.path if isinstance(run, Run) else Path(run)


@contextmanager
def session_of(run: AnyRun) -> Iterator[RunSession]:
    """The run's session, locked; at its end a `Run` that was given knows what was done."""
    silence_libraries()
    spare_loopback_from_proxies()
    with locked_session(folder_of(run)) as s:
        try:
            yield s
        finally:
            if isinstance(run, Run):
                run.refresh()
