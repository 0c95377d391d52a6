"""`noesis parity RUN`: is the model that will be served the one that was trained? Measured at every position of real
conversations.

    adapter on its base, float32 (PEFT)  →  merged, float32  →  each GGUF in llama.cpp
                                         →  adapter GGUF on a GGUF of the base

It compares token ids on 500 strings, rendered chat templates, the Kullback-Leibler divergence of the next-token
distributions, the share of equal most likely tokens, and greedy answers. A figure out of tolerance is blamed on a
stage: merge, tokenizer, template, conversion, quantisation or adapter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress
from noesis.core.files import require_space, sha256_file
from noesis.core.i18n import N_, _
from noesis.core.libraries import library_versions
from noesis.llm.gguf.families import read_config
from noesis.llm.gguf.hard_strings import hard_strings
from noesis.llm.gguf.header import read_header
from noesis.llm.weights.tensors import list_tensors
from noesis.release.gguf.vocabulary import comparable, read_tokenizer
from noesis.release.parity.audit import audit_controls, audit_gguf, audit_merge, update_share
from noesis.release.parity.certificate import (
    Certificate,
    Comparison,
    Finding,
    GgufFile,
    TemplateCheck,
    TokenizerCheck,
)
from noesis.release.parity.chat_templates import compare_renderings
from noesis.release.parity.figures import answer_agreement, within_tolerance
from noesis.release.parity.llama_logits import LlamaModel
from noesis.release.parity.measure import (
    CONTEXT,
    Inputs,
    Outputs,
    answer_prompts,
    divergence,
    measure_gguf,
    prepare_inputs,
    record_outputs,
)
from noesis.release.parity.reference import adapted_model, merged_model
from noesis.release.parity.tolerances import TOLERANCES, assess, tolerance_of
from noesis.release.parity.unfinished import Figures


@dataclass(frozen=True)
class TrainedAdapter:
    """The adapter, and how training stored and computed its base."""

    folder: Path
    base: Path
    quantization: Quantization | None
    dtype: str
    file: Path | None = None  # the adapter as GGUF
    base_file: Path | None = None  # a GGUF of the base for it


@dataclass(frozen=True)
class Subject:
    """What is certified, and on which texts."""

    merged: Path
    files: dict[str, Path]  # kind (`f16`, `q8_0`) → file
    adapter: TrainedAdapter | None = None  # None: there is only the model
    texts: list[str] = field(default_factory=list)  # rendered conversations, compared at every position
    prompts: list[str] = field(default_factory=list)  # rendered prompts, answered greedily
    answer_tokens: int = 24
    originals: bool = False  # also measure the adapter on the base's original weights
    prompts_from: str = ""  # where texts and prompts come from, for the reader of the certificate
    device: str = "cpu"  # where the reference is computed, if it has room (`cuda`)


MERGED, ADAPTER = "merged", "adapter"  # parts of a certificate beside the kinds of files


def certify(subject: Subject, tokenizer: Any, figures: Figures | None = None) -> Certificate:
    """Measure every stage. Bad figures do not raise, so that a failure can be written down first.

    Args:
        tokenizer: the merged model's own.
        figures: of parts that were measured before, which hold; what is measured now is added, part by part.

    Raises:
        ModelError: a file can't be read at all.
        NoesisError: the disk has no room for the reference logits.
    """
    started = time.monotonic()
    for file in subject.files.values():
        read_header(file)
    inputs = prepare_inputs(
        tokenizer,
        subject.texts,
        subject.prompts,
        answer_tokens=subject.answer_tokens,
        vocabulary=read_config(subject.merged).shape.vocabulary,
    )
    figures = figures or Figures()
    parts = figures.parts
    left = [part for part in _parts(subject) if part not in parts]
    if left:
        _measure(subject, tokenizer, inputs, left, figures)
    return Certificate(
        texts=len(inputs.rows),
        positions=inputs.positions,
        reference=N_("the adapter on its base in float32 ({where})", where=figures.where)
        if subject.adapter
        else N_("the merged model in float32 ({where})", where=figures.where),
        strings=len(hard_strings()),
        prompts=len(inputs.prompts),
        answer_tokens=inputs.answer_tokens,
        merge=parts.get(MERGED),
        files={kind: parts[kind] for kind in subject.files},
        adapter=parts[ADAPTER] if _has_adapter_file(subject) else None,
        versions=library_versions(),
        seconds=round(time.monotonic() - started, 1),
        prompts_from=subject.prompts_from,
    )


def _parts(subject: Subject) -> list[str]:
    """The parts of the certificate, in the order in which they are measured."""
    merged = [MERGED] if subject.adapter else []
    return [*merged, *subject.files, *([ADAPTER] if _has_adapter_file(subject) else [])]


def _has_adapter_file(subject: Subject) -> bool:
    a = subject.adapter
    return a is not None and a.file is not None and a.base_file is not None


def _measures_originals(subject: Subject) -> bool:
    """Whether to measure what it would cost to put the adapter on the base's original weights."""
    a = subject.adapter
    quantised = a is not None and a.quantization is not None and a.quantization.load_in_4bit
    return subject.originals and quantised


def _measure(subject: Subject, tokenizer: Any, inputs: Inputs, left: list[str], figures: Figures) -> None:
    """Measure the parts that are left, against references that are computed again for them."""
    require_space(Path(tempfile.gettempdir()), 2 * inputs.logits_bytes, _("the certificate's reference logits"))
    files = {kind: file for kind, file in subject.files.items() if kind in left}
    total = _tokens(subject, inputs, left, files)
    with tempfile.TemporaryDirectory(prefix="noesis-parity-") as scratch, Progress(_("certify"), total, "tok") as bar:
        answered = _answers_of_first_file(files, inputs, bar)
        drafts: list[list[int]] = next(iter(answered.values()), [[] for _ in inputs.prompts])
        adapted = _record_adapted(subject, inputs, Path(scratch), drafts, bar)
        if MERGED in left or files:
            model = merged_model(subject.merged, subject.device)
            figures.where = model.where
            merged = record_outputs(model, inputs, Path(scratch) / "merged", drafts, bar)
            del model
            if MERGED in left and adapted is not None:
                figures.keep(MERGED, _compare_merge(subject, inputs, adapted, merged, bar))
            for kind, comparison in _compare_files(files, subject, tokenizer, inputs, adapted, merged, answered, bar):
                figures.keep(kind, comparison)
        if ADAPTER in left and adapted is not None:
            figures.keep(ADAPTER, _compare_adapter_file(subject, inputs, adapted, bar))


def _tokens(subject: Subject, inputs: Inputs, left: list[str], files: dict[str, Path]) -> int:
    """Tokens that all models compute for the parts that are left."""
    references = (MERGED in left or bool(files)) + (subject.adapter is not None)
    originals = MERGED in left and _measures_originals(subject)
    measured = len(files) + (ADAPTER in left)
    return (references + originals + measured) * inputs.length + (references + measured) * inputs.answering


def _answers_of_first_file(files: dict[str, Path], inputs: Inputs, bar: Progress) -> dict[Path, list[list[int]]]:
    """What llama.cpp answers: the references' answers are nearly always the same, and are checked in one pass then."""
    for file in files.values():
        with LlamaModel(file, context=CONTEXT + inputs.answer_tokens) as model:
            return {file: answer_prompts(model, inputs, bar)}
    return {}


def _record_adapted(
    subject: Subject, inputs: Inputs, scratch: Path, drafts: list[list[int]], bar: Progress
) -> Outputs | None:
    """The adapter on its base, as trained; None where there is no adapter."""
    a = subject.adapter
    if a is None:
        return None
    model = adapted_model(a.base, a.folder, a.quantization, a.dtype, subject.device)
    return record_outputs(model, inputs, scratch / "adapted", drafts, bar)


def _compare_merge(subject: Subject, inputs: Inputs, adapted: Outputs, merged: Outputs, bar: Progress) -> Comparison:
    """The merged model against the adapter on its base."""
    a = subject.adapter
    assert a is not None
    on_originals = None
    if _measures_originals(subject):
        model = adapted_model(a.base, a.folder, None, a.dtype, subject.device)
        on_originals = divergence(adapted, model.logits(inputs.rows), inputs, bar)
    found, answers = divergence(adapted, merged.logits, inputs), answer_agreement(adapted.answers, merged.answers)
    tolerance = TOLERANCES["merge"]
    shares = update_share(a.base, a.folder, subject.merged, a.quantization, a.dtype)
    comparison = assess(
        found,
        answers,
        tolerance,
        stage="merge",
        symptom=N_("the merged model does not behave like the adapter on its base"),
        findings=[] if within_tolerance(found, tolerance, answers) else audit_merge(shares),
    )
    return replace(comparison, update_kept=shares, on_original_weights=on_originals)


def _compare_files(
    files: dict[str, Path],
    subject: Subject,
    tokenizer: Any,
    inputs: Inputs,
    adapted: Outputs | None,
    merged: Outputs,
    answered: dict[Path, list[list[int]]],
    bar: Progress,
) -> Iterator[tuple[str, Comparison]]:
    """Each of `files` against the merged model, and against the adapter on its base.

    Args:
        answered: answers of files that were asked before.
    """
    raw, bos = read_tokenizer(subject.merged), tokenizer.special.get("bos_token")
    strings = [comparable(text, raw, bos) for text in (*hard_strings(), *subject.texts)]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in strings]
    weights = sum(tensor.numbers for tensor in list_tensors(subject.merged).values())
    templates: TemplateCheck | None = None
    for kind, file in files.items():
        if templates is None:  # every file has the same template, which the audit checks
            templates = compare_renderings(file, tokenizer)  # in a process of its own, before the file is loaded here
        with LlamaModel(file, context=CONTEXT + inputs.answer_tokens) as model:
            different = [text for text, ids in zip(strings, expected, strict=True) if model.tokenize(text) != ids]
            controls = audit_controls(model, tokenizer)
            references = [merged, adapted] if adapted else [merged]
            divergences = measure_gguf(model, inputs, references, bar)
            answers = answered.get(file) or answer_prompts(model, inputs, bar)
        tokens = TokenizerCheck(len(strings), len(different), tuple(different[:3]))
        comparison = assess(
            divergences[0],
            answer_agreement(merged.answers, answers),
            tolerance_of(kind, weights),
            stage="quantisation" if kind.startswith("q") else "conversion",
            symptom=N_("it does not behave like the merged model"),
            findings=[*audit_gguf(subject.merged, file), *controls, *_text_findings(tokens, templates)],
        )
        yield (
            kind,
            replace(
                comparison,
                end_to_end=(divergences[1], answer_agreement(adapted.answers, answers)) if adapted else None,
                file=_describe(file),
                tokenizer=tokens,
                templates=templates,
            ),
        )


def _text_findings(tokens: TokenizerCheck, templates: TemplateCheck) -> list[Finding]:
    findings = []
    if tokens.different:
        example = tokens.examples[0][:40]
        what = N_(
            "{different} of {strings} strings are tokenised differently, {example!r} among them",
            different=tokens.different,
            strings=tokens.strings,
            example=example,
        )
        findings.append(Finding("tokenizer", what))
    if templates.different:
        what = N_(
            "{different} of {conversations} conversations are rendered differently",
            different=templates.different,
            conversations=templates.conversations,
        )
        findings.append(Finding("template", what))
    return findings


def _compare_adapter_file(subject: Subject, inputs: Inputs, adapted: Outputs, bar: Progress) -> Comparison:
    """The adapter's GGUF on a GGUF of its base, against the adapter in PEFT."""
    a = subject.adapter
    assert a is not None
    assert a.file is not None
    assert a.base_file is not None
    with LlamaModel(a.base_file, context=CONTEXT + inputs.answer_tokens) as model:
        model.use_adapter(a.file)
        divergences = measure_gguf(model, inputs, [adapted], bar)
        answers = answer_prompts(model, inputs, bar)
    comparison = assess(
        divergences[0],
        answer_agreement(adapted.answers, answers),
        TOLERANCES["adapter"],
        stage="adapter",
        symptom=N_("the adapter's GGUF on a GGUF of its base does not behave like the adapter in PEFT"),
    )
    return replace(comparison, file=_describe(a.file), base_file=a.base_file.name)


def _describe(file: Path) -> GgufFile:
    return GgufFile(file.name, file.stat().st_size, sha256_file(file))
