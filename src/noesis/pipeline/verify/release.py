"""What a run publishes: the merged model's card and provenance, and the certificate of its GGUF files."""

from __future__ import annotations

import re

from noesis.core.files import read_text, sha256_file
from noesis.core.i18n import _
from noesis.pipeline.gguf_files import provenance
from noesis.pipeline.stages.merge import CARD_NAME, card_content
from noesis.pipeline.verify.evidence import Evidence, UncheckedError
from noesis.release.model_card import model_card
from noesis.release.parity.figures import within_tolerance
from noesis.release.parity.tolerances import LARGE_TOLERANCES, TOLERANCES
from noesis.release.provenance import read_provenance

_ROW = re.compile(r"(?m)^\| ([^|]+) \| (.*) \|$")
_FIGURE = re.compile(r"[0-9a-f]{12,}|\d+(?:\.\d+)?|[A-Z]{8,}")  # hashes, numbers, verdicts


def card(e: Evidence) -> str | None:
    """README.md: its table's figures and verdict, and, by the same version's wording, its whole text."""
    found, derived = read_text(e.run.merged / CARD_NAME), model_card(card_content(e.session))
    told, follows = ({name: _FIGURE.findall(v) for name, v in _ROW.findall(text)} for text in (found, derived))
    if wrong := sorted(name for name in told.keys() | follows.keys() if told.get(name) != follows.get(name)):
        return _(
            "{card_name} of the merged model says something else than the run of: {wrong}",
            card_name=CARD_NAME,
            wrong=", ".join(wrong),
        )
    if found != derived:
        raise UncheckedError(
            _("the wording of {card_name} around its table is not that of this version", card_name=CARD_NAME)
        )
    return None


def origin(e: Evidence) -> str | None:
    """noesis.json, which goes into the GGUF files' metadata."""
    if not list(e.run.checkpoints.glob("epoch_*/adapter_model.safetensors")):
        raise UncheckedError(_("an adapter is missing"))
    told, derived = read_provenance(e.run.merged).to_json(), provenance(e.session).to_json()
    wrong = sorted(key for key in told.keys() | derived.keys() if told.get(key) != derived.get(key))
    return (
        _("noesis.json of the merged model has another {wrong} than the run", wrong=", ".join(wrong)) if wrong else None
    )


def certificate(e: Evidence) -> str | None:
    """That each part passed by its figures, within tolerances that Noesis has, and is about the file that is there."""
    result = e.results.certificate
    assert result is not None
    if e.json_of("gguf", "parity.json") != e.run.result("gguf"):
        return _("gguf/parity.json and the manifest differ")
    listed = e.run.manifest.stages["gguf"].outputs
    for name, found in result.comparisons():
        kind = {"merged": "merge"}.get(name, name)
        if found.tolerance not in (TOLERANCES.get(kind), LARGE_TOLERANCES.get(kind)):
            return _("the tolerance of {name} is none of Noesis's", name=name)
        if found.passed != (within_tolerance(found.divergence, found.tolerance, found.answers) and not found.findings):
            return _("whether {name} passed does not follow from its figures", name=name)
        if found.file is None:
            continue
        entry = listed.get(f"gguf/{found.file.name}")
        if entry is not None and (entry.sha256, entry.bytes) != (found.file.sha256, found.file.bytes):
            return _(
                "the certificate of {name} is of another file than gguf/{file_name}",
                name=name,
                file_name=found.file.name,
            )
    return None


def adapter_file(e: Evidence) -> str | None:
    """That the adapter's GGUF, which a server prefers, is the certified one."""
    result = e.results.certificate
    found = result.adapter.file if result and result.adapter else None
    if found is None:
        return None
    same = sha256_file(e.run.gguf / found.name) == found.sha256
    return None if same else _("gguf/{name} is not the file that was certified", name=found.name)
