"""What `modal run scripts/modal_train.py` does on the machine where it is typed: check, plan, quote, start, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import modal

from noesis.cloud.container.workspace import CallResult
from noesis.cloud.modal_errors import explained, no_token
from noesis.cloud.quote import quote_lines
from noesis.cloud.request import CloudRequest, request_from_options
from noesis.cloud.volume.uploaded_data import exported_hashes
from noesis.core.config import ModalSection
from noesis.core.console import command, complain, guard_terminal, say
from noesis.core.errors import UsageError
from noesis.core.files import explain_error
from noesis.core.project import Project
from noesis.llm.hub import is_hub_name

# Runs the orchestrator: a request and the names of secrets in, its result out.
Start = Callable[[CloudRequest, list[str]], CallResult]


def run_from_terminal(
    project: Project, section: ModalSection, start: Start, *, dry_run: bool, options: dict[str, Any]
) -> None:
    """Everything on this side of a run.

    Raises:
        SystemExit: with the exit code, unless it is 0.
    """
    guard_terminal()
    try:
        code = _run(project, section, start, dry_run=dry_run, options=options)
    except Exception as error:
        failure = explain_error(error)
        if failure is None:
            raise
        complain(f"error: {failure}")
        raise SystemExit(failure.exit_code) from None
    if code:
        raise SystemExit(code)


def _run(project: Project, section: ModalSection, start: Start, *, dry_run: bool, options: dict[str, Any]) -> int:
    request = request_from_options(section, **options)
    _check_gguf(request)
    config = request.overrides.configure(project)
    if request.what == "all":
        for line in quote_lines(project, config, request, section):
            say(line)
    if dry_run:
        say("\nNothing was started. The same command without --dry-run starts the run.")
        return 0
    request = CloudRequest.from_json(request.to_json() | {"uploaded": exported_hashes(project.exports)})
    with explained(section):
        secrets = _secrets(request, section)
        _say_how_to_leave()
        result = start(request, secrets)
    for line in result.value.get("lines", ()):
        say(line)
    if result.error is not None:
        complain(f"error: {result.error}")
    return result.code


def _check_gguf(request: CloudRequest) -> None:
    from noesis.release.gguf.quantize import KINDS

    for kind in request.gguf:
        if kind not in KINDS:
            raise UsageError(f"--gguf {kind!r} is not known; choose from {', '.join(KINDS)}")


def _secrets(request: CloudRequest, section: ModalSection) -> list[str]:
    """The names of the secrets that the containers need, each checked to exist.

    Raises:
        UsageError: the token for a model on the Hub is missing.
    """
    found = []
    if request.model is not None and is_hub_name(request.model):
        try:
            modal.Secret.from_name(section.secret, required_keys=["HF_TOKEN"]).hydrate()
        except (modal.exception.NotFoundError, modal.exception.InvalidError):
            raise no_token(section) from None
        found.append(section.secret)
    if request.judge_secret:
        modal.Secret.from_name(request.judge_secret).hydrate()
        found.append(request.judge_secret)
    return found


def _say_how_to_leave() -> None:
    """How the run outlives this terminal."""
    if not {"--detach", "-d"} & set(sys.argv):
        say(
            "\n  If you close this terminal, the run saves and stops; "
            "with  modal run --detach scripts/modal_train.py …  it continues."
        )
    say(f"  Follow it from anywhere:  {command('cloud', 'watch')}")
