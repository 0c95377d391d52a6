"""What the run was made from: its settings, data, base model, parent, and what its ledger adds up to."""

from __future__ import annotations

from noesis.core.files import sha256_file
from noesis.core.i18n import N_, _
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.statistics import describe
from noesis.llm.hub import find_tokenizer, identify_model
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.training_set import build_training_set, planned_workloads
from noesis.pipeline.verify.evidence import Evidence, UncheckedError, as_json
from noesis.run.directory import SETTINGS
from noesis.run.ledger import total

NO_MODEL = N_("the base model is not on this machine")


def deciding_settings(e: Evidence) -> str | None:
    same = e.config.digest() == e.run.identity.config_sha256
    return None if same else _("config.json is of another configuration than the manifest")


def all_settings(e: Evidence) -> str | None:
    """Thresholds, judges, budget and whatever else does not decide the adapter."""
    recorded = e.run.manifest.settings_sha256
    if recorded is None and e.run.manifest.is_early:
        raise UncheckedError(_("this run recorded only the settings that decide the adapter, as early versions did"))
    if recorded is None:
        return _("the manifest lacks settings_sha256, which every manifest of its format has")
    if e.config.training.output_name != e.run.manifest.output_name:
        return _(
            "config.json has the output_name {output_name!r}, the manifest another",
            output_name=e.config.training.output_name,
        )
    same = sha256_file(e.run.path / SETTINGS) == recorded
    return None if same else _("config.json is not the file that the manifest was written with")


def data(e: Evidence) -> str | None:
    if e.constitution.digest() != e.run.identity.constitution_sha256:
        return _("data/constitution.yaml is another constitution than the manifest's")
    same = e.dataset.digest() == e.run.identity.dataset_sha256
    return None if same else _("data/train.jsonl and eval.jsonl are other examples than the manifest's")


def statistics(e: Evidence) -> str | None:
    counter = find_token_counter(e.config, e.constitution)
    derived = as_json(describe(e.dataset, e.run.data, e.constitution, e.config, counter).to_json())
    stored = e.json_of("data", "statistics.json")
    if counter is None:  # the tokenizer is not on this machine: no tokens to compare
        for part in ("train", "eval"):
            derived[part]["tokens"] = stored[part]["tokens"]
    return (
        None if derived == stored == e.run.result("export") else _("data/statistics.json does not follow from the data")
    )


def base_model(e: Evidence) -> str | None:
    name, revision = e.config.training.model, e.config.training.revision
    if name != e.run.identity.base_model:
        return _("config.json names {name}, the manifest {base_model}", name=name, base_model=e.run.identity.base_model)
    if (found := identify_model(name, revision)) is None:
        raise UncheckedError(_(NO_MODEL))
    if found.revision != (named := e.run.identity.revision):
        return _("the base model here is {revision}, the manifest's {named}", revision=found.revision, named=named)
    same = found.said == e.run.manifest.base_file
    return None if same else _("name, licence or lineage of the base are others in the manifest than in its file")


def tokens(e: Evidence) -> str | None:
    folder, plan = find_tokenizer(e.config.training.model, e.config.training.revision), e.results.plan
    if plan is None or folder is None:
        raise UncheckedError(_(NO_MODEL) if plan else _("an early version made no such plan"))
    encoder = open_encoder(folder)
    known = build_training_set(e.config, e.dataset, encoder, e.constitution)
    found = planned_workloads(e.config, e.dataset, e.constitution, encoder, known).last.tokens
    planned = plan.tokens_per_epoch
    return (
        None
        if found == planned
        else _("the examples have {found} tokens, the plan says {planned}", found=found, planned=planned)
    )


def parent(e: Evidence) -> str | None:
    recorded, named = e.run.manifest.parent, e.run.identity.parent_sha256
    if recorded is None:
        return (
            None if named is None else _("it started from another run's adapter, and the manifest does not say which")
        )
    found = sha256_file(e.run.path / "parent" / "adapter_model.safetensors")
    same = found == recorded.adapter_sha256 == named
    return None if same else _("parent/ holds another adapter than the manifest's")


def ledger(e: Evidence) -> str | None:
    usd, seconds = total(e.run.manifest.ledger)
    told = (e.run.manifest.cost_usd, e.run.manifest.worked_seconds)
    if told != (usd, seconds):
        return _(
            "the ledger's entries add up to {usd} USD and {seconds} s, the manifest says {told}",
            usd=usd,
            seconds=seconds,
            told=told,
        )
    negative = [entry.stage for entry in e.run.manifest.ledger if entry.usd < 0 or entry.seconds < 0]
    return _("the ledger has negative entries: {negative}", negative=", ".join(negative)) if negative else None
