"""What is done before a GPU is paid for: uploaded data, licence, token and weights; and whether the judge can judge.

`prepare` runs on a machine without a GPU and fetches onto the volume of weights. `probe_judge` starts the judge that
the run serves, on the judge's own GPU, while training runs: no answer is written for a judge that can't read it.
"""

from __future__ import annotations

import time
from dataclasses import replace

from noesis.cloud.container.vllm_judge import judge_specs, temporary_key, vllm_command, vllm_server
from noesis.cloud.container.workspace import CallResult, ContainerContext, run_guarded
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest, modal_run
from noesis.cloud.volume.layout import DATASET
from noesis.cloud.volume.uploaded_data import require_upload
from noesis.core.config import load_config
from noesis.core.console import say
from noesis.core.errors import ModelError
from noesis.core.i18n import N_, _, in_english
from noesis.core.project import Project
from noesis.llm.clients.protocol import NoReplyError

TRIED = 2  # requests of the probe before its judge counts as out of reach


def prepare(context: ContainerContext, request: CloudRequest) -> CallResult:
    """Check the upload, fetch the weights of the base and of the judge, ask each judge at an address one question.

    Returns:
        `judge_problem`: why there can be no trial, or None; `continues`: whether training will go on with the run on
        the volume. What is wrong with the base is the call's error. Either way the `seconds` of the container.
    """
    from noesis.llm.hub import find_model, is_hub_name

    def work() -> CallResult:
        config = request.overrides.configure(context.project)
        if request.what == "all":
            require_upload(context.root / DATASET, request.uploaded, config.training.modal.volume)
        if request.model is not None and is_hub_name(request.model):
            say(_("  fetching {model}, unless it is on the volume", model=request.model))
            find_model(config.training.model, config.training.revision)
            context.commit_weights()
        continues = request.what != "all" or _continues(context, request)
        problem = None
        if request.what != "merge" and request.judge_problem is None:
            problem = _problem_of_judges(context, request)
        return CallResult({"judge_problem": problem, "continues": continues})

    return _timed(context, run_guarded(context, work))


def _timed(context: ContainerContext, result: CallResult) -> CallResult:
    """With what the container took, since it writes no ledger; also where it failed."""
    return replace(result, value=result.value | {"seconds": time.monotonic() - context.began})


def _continues(context: ContainerContext, request: CloudRequest) -> bool:
    """Whether training will go on with the run on the volume, so that what it has cost counts towards the cap."""
    from noesis.pipeline.start_run import from_exports, would_continue

    if request.fresh or request.resume:
        return request.resume
    config = request.overrides.configure(context.project)
    dataset = from_exports(context.root / DATASET, context.project)
    return would_continue(context.project, config, context.root, dataset)


def _problem_of_judges(context: ContainerContext, request: CloudRequest) -> str | None:
    from noesis.llm.hub import find_model

    for model in request.served_judges:
        try:
            say(_("  fetching {model}, the judge, unless it is on the volume", model=model))
            find_model(model)
        except ModelError as error:
            return judge_problem(LOCAL_JUDGE + model, str(error))
    for spec in request.remote_judges:
        try:
            ask_one_question(context.project, spec)
        except ModelError as error:
            return judge_problem(spec, str(error))
    return None


def probe_judge(context: ContainerContext, request: CloudRequest) -> CallResult:
    """Start the judge that the run serves and ask it one question.

    Returns:
        `judge_problem`: which judge can't judge, why, and what to type, None if it can; `seconds` of the container.
    """

    def work() -> CallResult:
        for model, spec in zip(request.served_judges, judge_specs(request), strict=False):
            try:
                with temporary_key() as key, vllm_server(vllm_command(model), key):
                    ask_one_question(context.project, spec)
            except ModelError as error:
                return CallResult({"judge_problem": judge_problem(LOCAL_JUDGE + model, str(error))})
        return CallResult({"judge_problem": None})

    return _timed(context, run_guarded(context, work))


def judge_problem(spec: str, why: str) -> str:
    """The verdict's reason where a judge can't judge."""
    return N_(
        "the judge {spec} can't judge: {why}. Mend that or name another with --judge, and type  {command}",
        spec=spec,
        why=in_english(why).rstrip(". "),
        command=modal_run("--test-only"),
    )


def ask_one_question(project: Project, spec: str) -> None:
    """Ask a judge about one answer, as the Tribunal asks it.

    Raises:
        ModelError: it gives no reply.
    """
    from noesis.core.event_loop import run_async
    from noesis.llm.clients.open import close_clients, open_client
    from noesis.llm.clients.spec import parse_spec
    from noesis.llm.clients.spending import Spending
    from noesis.tribunal.judge import JudgeCase, build_request
    from noesis.tribunal.panel import read_rubrics

    section = load_config(project).training.tribunal.model_copy(update={"attempts": TRIED})
    rubrics = read_rubrics(project)
    case = JudgeCase("probe", "en", (("user", "What is two and two?"),), "Two and two is four.")
    question, _ignored = build_request(rubrics, rubrics.rubrics["veritas"], case)

    async def ask() -> None:
        client = open_client(parse_spec(spec), section, Spending())
        try:
            await client.ask(question)
        finally:
            await close_clients([client])

    try:
        run_async(ask())
    except NoReplyError as error:
        raise ModelError(_("it did not answer a question ({error})", error=error)) from None
