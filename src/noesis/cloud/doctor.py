"""`noesis cloud doctor`: check what a run on Modal needs, and say how to get what is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import modal

from noesis.cloud.modal_errors import explain, no_token
from noesis.cloud.request import export_command
from noesis.cloud.volume.remote import ModalVolumeFiles, read_text
from noesis.cloud.volume.uploaded_data import PARTS, exported_hashes, put_command
from noesis.core.config import ModalSection
from noesis.core.console import size
from noesis.core.errors import NoesisError
from noesis.core.i18n import _
from noesis.core.project import Project
from noesis.llm.embedded import EMBEDDED
from noesis.llm.hub import is_hub_name
from noesis.planning.gpus import FILE as PRICE_LIST
from noesis.planning.gpus import prices
from noesis.workspace.doctor import Check

TESTED = (1, 6)  # version of Modal's SDK
STALE_MONTHS = 6
MAX_HASHED = 512 * 2**20  # bytes of a dataset that are fetched to be hashed


def run_checks(project: Project, section: ModalSection) -> list[Check]:
    """All checks, in the order in which to fix them. Nothing is changed, and no secret is shown."""
    checks = [_sdk(), _prices(), _local_dataset(project)]
    token = _try(_("Modal token"), lambda: str(modal.Client.from_env().hello() or "accepted"), section)
    checks.append(token)
    if token.ok:
        volume = _try(
            _("volume {volume}", volume=section.volume),
            lambda: str(modal.Volume.from_name(section.volume).hydrate() and "there"),
            section,
        )
        checks.append(volume)
        checks.append(_secret(section))
        if volume.ok:
            checks.append(_uploaded_dataset(project, section))
    return [*checks, _licence(section)]


def _sdk() -> Check:
    found = importlib.metadata.version("modal")
    version = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    return Check(
        "modal",
        found,
        version[:1] == TESTED[:1] and version >= TESTED,
        True,
        f"pip install 'modal>={TESTED[0]}.{TESTED[1]},<{TESTED[0] + 1}'",
    )


def _prices() -> Check:
    """Age of the prices that quotes are based on."""
    date = prices().date
    year, month = (int(part) for part in date.split("-")[:2])
    now = datetime.now(UTC)
    months = (now.year - year) * 12 + now.month - month
    return Check(
        _("prices"),
        _("from {date}, {months} months old", date=date, months=months),
        months <= STALE_MONTHS,
        False,
        _("compare with  modal billing rates --json  and edit {name}", name=PRICE_LIST.name),
    )


def _local_dataset(project: Project) -> Check:
    """The export on this machine."""
    try:
        found = exported_hashes(project.exports)
    except NoesisError as error:
        return Check(_("dataset here"), _("changed since its export"), False, True, str(error))
    if found is None:
        return Check(_("dataset here"), _("not exported"), False, False, export_command())
    return Check(_("dataset here"), f"{found['train'][:12]}…", True)


def _try(name: str, call: Callable[[], str], section: ModalSection) -> Check:
    try:
        return Check(name, call(), True)
    except modal.exception.Error as error:
        return Check(name, _("not there"), False, True, str(explain(error, section)))


def _secret(section: ModalSection) -> Check:
    name = _("secret {secret}", secret=section.secret)
    try:
        modal.Secret.from_name(section.secret, required_keys=["HF_TOKEN"]).hydrate()
    except (modal.exception.NotFoundError, modal.exception.InvalidError):
        return Check(
            name, _("not there, or without HF_TOKEN"), False, section.model != EMBEDDED, str(no_token(section))
        )
    return Check(name, _("there, with HF_TOKEN"), True)


def _uploaded_dataset(project: Project, section: ModalSection) -> Check:
    """/dataset on the volume, compared with its own statistics and with the export on this machine."""
    files, name = ModalVolumeFiles(section), _("dataset on the volume")
    sizes = {entry.path.rsplit("/", 1)[-1]: entry.size for entry in files.files("/dataset")}
    absent = [part for part in PARTS if f"{part}.jsonl" not in sizes]
    if absent:
        return Check(
            name,
            _("Dataset not found") if len(absent) == 2 else _("{absent}.jsonl is missing", absent=absent[0]),
            False,
            True,
            put_command(section.volume, force=bool(sizes)),
        )
    upload = put_command(section.volume, force=True)
    if sum(sizes.values()) > MAX_HASHED:
        return Check(
            name,
            _("{values}, too large to be hashed here; the container checks it", values=size(sum(sizes.values()))),
            True,
        )
    found = {part: _sha256(files, f"/dataset/{part}.jsonl") for part in PARTS}
    try:
        described = {
            part: json.loads(read_text(files, "/dataset/statistics.json") or "{}")[part]["sha256"] for part in PARTS
        }
    except (ValueError, KeyError, TypeError):
        return Check(name, _("without a statistics.json that describes it"), False, False, upload)
    if described != found:
        return Check(name, _("not complete: it differs from what its statistics.json describes"), False, True, upload)
    try:
        here = exported_hashes(project.exports)
    except NoesisError:
        here = None
    if here is not None and here != found:
        return Check(name, _("not the one that was exported here"), False, True, upload)
    return Check(name, f"{found['train'][:12]}…" + (_(", the one exported here") if here else ""), True)


def _sha256(files: ModalVolumeFiles, path: str) -> str:
    digest = hashlib.sha256()
    for chunk in files.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _licence(section: ModalSection) -> Check:
    """Whether this machine's HF_TOKEN may read the gated model; the token in the secret is never read here."""
    from huggingface_hub import auth_check
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name, page = _("licence of {model}", model=section.model), f"https://huggingface.co/{section.model}"
    if not is_hub_name(section.model):
        return Check(name, _("none to accept"), True)
    if not os.environ.get("HF_TOKEN"):
        return Check(
            name,
            _("not checked: no HF_TOKEN on this machine"),
            False,
            False,
            _("accept it at {page}; set HF_TOKEN=hf_… to have it checked here", page=page),
        )
    try:
        auth_check(section.model, token=os.environ["HF_TOKEN"])
    except GatedRepoError:
        return Check(
            name,
            _("not accepted by the account of HF_TOKEN (Model not found)"),
            False,
            True,
            _("accept it at {page}", page=page),
        )
    except RepositoryNotFoundError:
        return Check(
            name,
            _("Model not found, or HF_TOKEN is not valid"),
            False,
            True,
            _("see {page}; create a token at https://huggingface.co/settings/tokens", page=page),
        )
    except (HfHubHTTPError, OSError) as error:
        return Check(
            name,
            _("not checked: {error}", error=" ".join(str(error).split())[:100]),
            False,
            False,
            _("see {page}", page=page),
        )
    return Check(name, _("accepted"), True)
