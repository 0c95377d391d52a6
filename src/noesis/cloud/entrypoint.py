"""The part of `modal run scripts/modal_train.py` that happens where it is typed: check, plan, quote, start, tell how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import modal

from noesis.cloud.modal_errors import explained, no_token
from noesis.cloud.quote import quote_lines
from noesis.cloud.request import CloudRequest, checked
from noesis.cloud.volume.uploaded_data import exported_hashes
from noesis.core.config import ModalSection, load_config
from noesis.core.console import say
from noesis.core.errors import NoesisError, UsageError
from noesis.core.project import Project
from noesis.llm.embedded import EMBEDDED

Start = Callable[[CloudRequest, list[str]], dict[str, Any]]


def run_from_terminal(
    project: Project, section: ModalSection, start: Start, *, dry_run: bool, options: dict[str, Any]
) -> None:
    """Everything on this side.

    Args:
        start: the conductor: a request and the names of secrets in, its result out.

    Raises:
        SystemExit: with the exit code, unless it is 0.
    """
    try:
        code = _begin(project, section, start, dry_run=dry_run, options=options)
    except NoesisError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if code:
        raise SystemExit(code)


def _begin(project: Project, section: ModalSection, start: Start, *, dry_run: bool, options: dict[str, Any]) -> int:
    request = checked(section, **options)
    _check_gguf(request)
    config = load_config(project, request.overrides())
    if request.what == "all":
        for line in quote_lines(project, config, request, section):
            say(line)
    if dry_run:
        say("\nNothing was started. The same command without --dry-run does.")
        return 0
    request = CloudRequest.from_json(request.as_json() | {"uploaded": exported_hashes(project.exports)})
    with explained(section):
        secrets = _secrets(request, section)
        _advise()
        done = start(request, secrets)
    return _end(done)


def _check_gguf(request: CloudRequest) -> None:
    from noesis.release.gguf.quantize import KINDS

    for kind in request.gguf:
        if kind not in KINDS:
            raise UsageError(f"--gguf {kind!r} is not known; choose from {', '.join(KINDS)}")


def _secrets(request: CloudRequest, section: ModalSection) -> list[str]:
    """The names of the secrets that the containers get, each seen to be there.

    Raises:
        UsageError: the token for a model of the Hub is missing.
    """
    found = []
    if (
        request.model is not None
        and request.model != EMBEDDED
        and "/" in request.model
        and not request.model.startswith(("/", "~", "."))
    ):
        try:
            modal.Secret.from_name(section.secret, required_keys=["HF_TOKEN"]).hydrate()
        except (modal.exception.NotFoundError, modal.exception.InvalidError):
            raise no_token(section) from None
        found.append(section.secret)
    if request.judge_secret:
        modal.Secret.from_name(request.judge_secret).hydrate()
        found.append(request.judge_secret)
    return found


def _advise() -> None:
    """How to leave it alone."""
    if not {"--detach", "-d"} & set(sys.argv):
        say(
            "\n  Close this terminal and the run stops, saved; `modal run --detach scripts/modal_train.py …` goes on without it."
        )
    say("  See it from anywhere:  noesis cloud watch")


def _end(done: dict[str, Any]) -> int:
    for line in done.get("lines", ()):
        say(line)
    if "error" in done:
        print(f"error: {done['error']}", file=sys.stderr)
    return int(done["code"])
