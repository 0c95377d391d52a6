"""What `modal run scripts/modal_train.py` does on the machine where it is typed: check, plan, quote, start, report."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import modal

from noesis.cloud.billing import current_prices
from noesis.cloud.checks import check_request
from noesis.cloud.container.prepare import judge_problem
from noesis.cloud.container.workspace import CallResult
from noesis.cloud.modal_errors import explained, no_token
from noesis.cloud.patience import BUILDS_S, patiently
from noesis.cloud.quote import quote_lines, quoted_seconds
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest, modal_run, request_from_options
from noesis.cloud.volume.uploaded_data import exported_hashes
from noesis.core.config import Config, ModalSection
from noesis.core.console import command, complain, guard_terminal, report_error, say
from noesis.core.errors import UsageError
from noesis.core.files import explain_error
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.llm.hub import is_hub_name
from noesis.planning.gpus import use_prices

NODES_ASKED = "NOESIS_NODES_ASKED"  # environment variable where the app is deployed
# Runs the orchestrator: a request and the names of secrets in, its result out.
Start = Callable[[CloudRequest, list[str]], CallResult]


def run_from_terminal(
    project: Project,
    section: ModalSection,
    start: Start,
    *,
    deploy_judge: Callable[[], object],
    deploy_nodes: Callable[[], object],
    dry_run: bool,
    options: dict[str, Any],
    app_id: str | None = None,
) -> None:
    """Everything on this side of a run.

    Args:
        deploy_judge: builds the image with vLLM and deploys the functions that need it.
        deploy_nodes: deploys the training on several machines.
        app_id: of this `modal run`; its log is found by it.

    Raises:
        SystemExit: with the exit code, unless it is 0.
    """
    guard_terminal()
    try:
        code = _run(
            project, section, start, deploy_judge, deploy_nodes, dry_run=dry_run, options=options, app_id=app_id
        )
    except Exception as error:
        failure = explain_error(error)
        if failure is None:
            raise
        report_error(failure)
        raise SystemExit(failure.exit_code) from None
    if code:
        raise SystemExit(code)


def _run(
    project: Project,
    section: ModalSection,
    start: Start,
    deploy_judge: Callable[[], object],
    deploy_nodes: Callable[[], object],
    *,
    dry_run: bool,
    options: dict[str, Any],
    app_id: str | None,
) -> int:
    request = request_from_options(section, **options)
    if not dry_run:
        _say_how_to_leave(app_id)
        request = at_current_prices(request)
    config = request.overrides.configure(project)
    check_request(project, config.training, request)
    if request.what == "all":
        for line in quote_lines(project, config, request, section):
            say(line)
    if dry_run:
        say()
        say(_("Nothing was built or started. The same command without --dry-run starts the run."))
        say(
            _(
                "Modal was asked for an empty app; to plan and quote without Modal:  {command}",
                command=command("cloud", "plan"),
            )
        )
        return 0
    request = as_started(project, config, request, section)
    with explained(section):
        secrets = secrets_of(request, section)
        require_nodes_deployed(request, deploy_nodes)
        request = with_judge_deployed(request, deploy_judge)
        result = start(request, secrets)
    for line in result.value.get("lines", ()):
        say(line)
    if result.error is not None:
        complain(_("error: {error}", error=retold(result.error or "")))
    return result.code


def as_started(project: Project, config: Config, request: CloudRequest, section: ModalSection) -> CloudRequest:
    """The request with what only this machine knows: the hashes of the export, and the quote."""
    seconds = quoted_seconds(project, config, request, section) if request.what == "all" else None
    return replace(request, uploaded=exported_hashes(project.exports), seconds=seconds)


def at_current_prices(request: CloudRequest) -> CloudRequest:
    """The request with Modal's own rates, if it tells them; this process quotes by them too."""
    found, how = current_prices()
    say(f"  {retold(how)}")
    use_prices(found)
    return replace(request, prices=found)


def with_judge_deployed(request: CloudRequest, deploy_judge: Callable[[], object]) -> CloudRequest:
    """Deploy what serves the judge, if the run serves one.

    Returns:
        the request; where the image could not be built, with that as the judge's problem: training needs no judge.
    """
    if not request.served_judges or request.what == "merge":
        return request
    say()
    say(_("  the image that serves the judge: built once, in a few minutes, unless Modal has it"))
    try:
        patiently(_("deploy the judge"), deploy_judge, works_s=BUILDS_S)
    except modal.exception.AuthError:
        raise
    except modal.exception.Error as error:
        why = _("the image with vLLM could not be built ({error})", error=" ".join(str(error).split())[:300])
        problem = judge_problem(LOCAL_JUDGE + request.served_judges[0], why)
        say(_("  there will be no trial: {problem}", problem=retold(problem)))
        return replace(request, judge_problem=problem)
    return request


def require_nodes_deployed(request: CloudRequest, deploy_nodes: Callable[[], object]) -> None:
    """Deploy the training on several machines, if that is asked for.

    Raises:
        UsageError: this version of the SDK, or this account, has no clusters.
    """
    if request.nodes == 1:
        return
    instead = _("; without --nodes one machine trains, with up to 8 GPUs")
    if not hasattr(modal, "clustered"):
        raise UsageError(
            _(
                "--nodes {nodes}: modal {version} has no clusters{instead}",
                nodes=request.nodes,
                version=modal.__version__,
                instead=instead,
            )
        )
    try:
        patiently(_("deploy the cluster"), deploy_nodes, works_s=BUILDS_S)
    except modal.exception.AuthError:
        raise
    except modal.exception.Error as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(
            _(
                "--nodes {nodes}: Modal gives no cluster here ({why}){instead}",
                nodes=request.nodes,
                why=why,
                instead=instead,
            )
        ) from None


def nodes_asked() -> int:
    """Machines of the cluster that is declared: as typed, or as `noesis cloud train` says; else 2, for nobody."""
    typed = re.search(r"(?:^|\s)--nodes[ =](\d+)", " ".join(sys.argv))
    return int((typed and typed[1]) or os.environ.get(NODES_ASKED) or 2)


def secrets_of(request: CloudRequest, section: ModalSection) -> list[str]:
    """The names of the secrets that the containers need, each checked to exist.

    Raises:
        UsageError: the token for a model on the Hub is missing.
    """
    found = []
    if request.model is not None and is_hub_name(request.model):
        try:
            patiently(_("find a secret"), modal.Secret.from_name(section.secret, required_keys=["HF_TOKEN"]).hydrate)
        except (modal.exception.NotFoundError, modal.exception.InvalidError):
            raise no_token(section) from None
        found.append(section.secret)
    if request.judge_secret:
        patiently(_("find a secret"), modal.Secret.from_name(request.judge_secret).hydrate)
        found.append(request.judge_secret)
    return found


def _say_how_to_leave(app_id: str | None) -> None:
    """How the run outlives this terminal, and where it is seen from elsewhere."""
    if not {"--detach", "-d"} & set(sys.argv):
        say()
        say(
            _(
                "  If you close this terminal or its lid, the run saves and stops; with  "
                "{modal_run} …  or  {command} …  it continues.",
                modal_run=modal_run(detach=True),
                command=command("cloud", "train"),
            )
        )
    log = _("    its log:  modal app logs {app_id} -f", app_id=app_id) if app_id else ""
    say(_("  Follow it from anywhere:  {command}{log}", command=command("cloud", "watch"), log=log))
