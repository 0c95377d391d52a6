"""A run without a terminal: `noesis cloud train` deploys the app, starts the run and returns; `cloud stop` ends one.

A deployed app has a name that logs are found by, and goes on whatever becomes of the machine that started it.
Page: https://modal.com/docs/guide/trigger-deployed-functions
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import modal

from noesis.cloud.checks import check_request
from noesis.cloud.entrypoint import (
    NODES_ASKED,
    as_started,
    at_current_prices,
    require_nodes_deployed,
    secrets_of,
    with_judge_deployed,
)
from noesis.cloud.modal_errors import explained
from noesis.cloud.patience import BUILDS_S, cancel_call, patiently
from noesis.cloud.quote import quote_lines
from noesis.cloud.request import request_from_options
from noesis.cloud.volume.layout import FOLDER, LEASE
from noesis.cloud.volume.lease import LeaseRecord
from noesis.cloud.volume.remote import ModalVolumeFiles, read_text
from noesis.core.config import ModalSection
from noesis.core.console import command, say
from noesis.core.errors import RunError
from noesis.core.i18n import _
from noesis.core.project import Project


def start_deployed(project: Project, section: ModalSection, options: dict[str, Any]) -> str:
    """Check, quote, deploy, and start the run; it is not waited for.

    Returns:
        the id of the call that conducts it.

    Raises:
        UsageError: something is missing, or can't work. RunError: another run is using the volume.
    """
    request = at_current_prices(request_from_options(section, **options))
    config = request.overrides.configure(project)
    check_request(project, config.training, request)
    if request.what == "all":
        for line in quote_lines(project, config, request, section):
            say(line)
    request = as_started(project, config, request, section)
    os.environ["NOESIS_PROJECT"] = str(project.root.resolve())  # whose settings and data the app has
    os.environ[NODES_ASKED] = str(request.nodes) if request.nodes > 1 else ""
    from noesis.cloud.app import app, clustering, judging

    with explained(section):
        secrets = secrets_of(request, section)
        patiently(_("find the volume"), modal.Volume.from_name(section.volume, create_if_missing=True).hydrate)
        if _lease(section) is not None:
            raise RunError(
                _(
                    "another run is using this volume: see it with  {command}, or stop it with  {stop}",
                    command=command("cloud", "watch"),
                    stop=command("cloud", "stop"),
                )
            )
        with redirect_stdout(sys.stderr), modal.enable_output():  # standard output is for the result
            require_nodes_deployed(request, clustering.deploy)
            request = with_judge_deployed(request, judging.deploy)
            patiently(_("deploy the app"), app.deploy, works_s=BUILDS_S)
        conduct = modal.Function.from_name(section.app, "conduct")
        call = patiently(_("start the run"), lambda: conduct.spawn(request.to_json(), secrets))
    say()
    say(_("  The run has started and needs this machine no more (call {object_id}).", object_id=call.object_id))
    say(
        _(
            "  Follow it:  {command}    its log:  {logs}",
            command=command("cloud", "watch"),
            logs=command("cloud", "logs", "--follow"),
        )
    )
    say(_("  Stop it:    {command}", command=command("cloud", "stop")))
    say(_("  At its end: {command}", command=command("cloud", "pull", f"runs/{config.training.output_name}")))
    return str(call.object_id)


def stop_run(section: ModalSection) -> list[str]:
    """Cancel all calls of the run on the volume; each container saves what it has.

    Returns:
        the ids of the calls; none where nothing is running.

    Raises:
        RunError: Modal can't be reached.
    """
    record = _lease(section)
    if record is None:
        return []
    calls = [record.holder, *record.calls.values()]  # first the one that would start others
    for call in calls:
        cancel_call(call)
    return calls


def _lease(section: ModalSection) -> LeaseRecord | None:
    """The lease on the volume, if a run holds it."""
    text = patiently(_("read the volume"), lambda: read_text(ModalVolumeFiles(section), f"/{FOLDER}/{LEASE}"))
    record = LeaseRecord.parse(text)
    return record if record.until > time.time() else None
