"""`noesis parity RUN`: is what will be served what was trained? Measured at every position of real conversations, not assumed.

    adapter on its base, float32 (PEFT)  →  merged, float32  →  each GGUF in llama.cpp
                                         →  adapter GGUF on a GGUF of the base

Compared are token ids on 500 strings, rendered chat templates, the Kullback-Leibler divergence of the next-token distributions with the
share of equal first choices, and greedy answers. The tolerances are those at which sound files and the known errors lie far apart
(docs/decisions/0004 and 0022). Outside them the certificate names the stage that broke: merge, tokenizer, template, conversion,
quantisation or adapter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import Progress, say
from noesis.core.errors import ModelError, ParityError
from noesis.core.files import require_space, sha256_file
from noesis.core.libraries import library_versions
from noesis.llm.weights import list_tensors
from noesis.release.gguf.families import read_config
from noesis.release.gguf.vocabulary import comparable, read_tokenizer
from noesis.release.parity.audit import Finding, audit_gguf, audit_merge, require_gguf, update_share
from noesis.release.parity.chat_templates import compare_renderings
from noesis.release.parity.figures import DivergenceMeter, Tolerance, answer_agreement, within_tolerance
from noesis.release.parity.hard_strings import HARD_STRINGS, hard_strings
from noesis.release.parity.llama_logits import LlamaModel
from noesis.release.parity.reference import adapted_model, merged_model

__all__ = ["HARD_STRINGS", "TOLERANCES", "Subject", "TrainedAdapter", "certify", "reject_failed", "require_passed"]

# F32 and F16 prove the conversion; the quants are a quality budget. Merging rounds to 16 bits once.
TOLERANCES = {
    "merge": Tolerance(1e-3, 0.97, 0.6),
    "f32": Tolerance(2e-5, 0.985, 0.8),
    "f16": Tolerance(4e-5, 0.985, 0.8),
    "q8_0": Tolerance(3e-2, 0.85),
    "q4_k_m": Tolerance(0.4, 0.65),
    "adapter": Tolerance(1e-4, 0.96, 0.6),
}
LARGE = {
    "q8_0": Tolerance(5e-3, 0.93),
    "q4_k_m": Tolerance(6e-2, 0.85),
}  # models of billions of weights are less easily disturbed
BILLIONS = 3e9
CONTEXT = 256  # most tokens of a text that are compared


@dataclass(frozen=True)
class TrainedAdapter:
    """The adapter, and how its base was stored and computed in training."""

    folder: Path
    base: Path
    quantization: Quantization | None
    dtype: str
    file: Path | None = None  # the adapter as GGUF
    base_file: Path | None = None  # a GGUF of the base for it


@dataclass(frozen=True)
class Subject:
    """What is certified."""

    merged: Path
    files: dict[str, Path]  # kind (`f16`, `q8_0`) → file
    adapter: TrainedAdapter | None = None  # None: the model is all there is
    texts: list[str] = field(default_factory=list)  # rendered conversations, compared at every position
    prompts: list[str] = field(default_factory=list)  # rendered prompts, answered greedily
    answer_tokens: int = 24
    originals: bool = False  # also say how the adapter would behave on the base's original weights


def certify(subject: Subject, tokenizer: Any) -> dict[str, Any]:
    """Measure every stage; nothing is raised for a bad figure, so that a failure can be written down first.

    Args:
        tokenizer: the merged model's own.

    Raises:
        ModelError: a file that can't be read at all.
    """
    import numpy as np

    started = time.monotonic()
    for file in subject.files.values():
        require_gguf(file)
    rows = [ids for text in subject.texts if (ids := tokenizer(text, add_special_tokens=False)["input_ids"][:CONTEXT])]
    asked = [tokenizer(text, add_special_tokens=False)["input_ids"][-CONTEXT:] for text in subject.prompts]
    stop = {tokenizer.eos_token_id} - {None}
    width, positions = int(read_config(subject.merged)["vocab_size"]), sum(map(len, rows))
    require_space(Path(tempfile.gettempdir()), 2 * positions * width * 4, "the certificate's reference logits")
    with tempfile.TemporaryDirectory(prefix="noesis-parity-") as scratch:

        def store(name: str, logits: Iterable[Any], what: str) -> Any:
            kept, place = np.memmap(Path(scratch) / name, dtype=np.float32, mode="w+", shape=(positions, width)), 0
            with Progress(what, positions, "tok") as progress:
                for row in logits:
                    kept[place : place + len(row)] = row[:, :width]
                    place += len(row)
                    progress.advance(len(row))
            return kept

        def said_by(model: Any) -> list[list[int]]:
            return [model.answer(ids, subject.answer_tokens, stop) for ids in asked]

        merge: dict[str, Any] | None = None
        elsewhere: dict[str, Any] | None = None
        first: tuple[Any, list[list[int]]] | None = None
        if subject.adapter:
            a = subject.adapter
            model = adapted_model(a.base, a.folder, a.quantization, a.dtype)
            first = store("adapted", model.logits(rows), "adapter on its base"), said_by(model)
            del model
            if subject.originals and a.quantization is not None and a.quantization.load_in_4bit:
                model, figures = adapted_model(a.base, a.folder, None, a.dtype), DivergenceMeter()
                for ours, theirs, start in zip(_cut(first[0], rows), model.logits(rows), _new(rows), strict=True):
                    figures.add(ours[start:], theirs[start:, :width])
                elsewhere = figures.as_json()
                del model
        model = merged_model(subject.merged)
        second = store("merged", model.logits(rows), "merged model"), said_by(model)
        del model
        if subject.adapter and first:
            a = subject.adapter
            figures = DivergenceMeter()
            for ours, theirs, start in zip(_cut(first[0], rows), _cut(second[0], rows), _new(rows), strict=True):
                figures.add(ours[start:], theirs[start:])
            merge = _entry(figures.as_json(), TOLERANCES["merge"], answer_agreement(first[1], second[1]))
            merge["update_kept"] = update_share(a.base, a.folder, subject.merged, a.quantization, a.dtype)
            if elsewhere is not None:
                merge["on_original_weights"] = elsewhere  # no error: what the choice of weights is worth
            findings = [] if merge["passed"] else audit_merge(merge["update_kept"])
            _judge(merge, findings, "merge", "the merged model does not behave like the adapter on its base")
        files = _files(subject, tokenizer, rows, asked, stop, first, second)
    adapter = files.pop("adapter", None)
    return {
        "texts": len(rows),
        "positions": positions - sum(_new(rows)),
        "reference": "the adapter on its base in float32" if subject.adapter else "the merged model in float32",
        "strings": len(hard_strings()),
        "answered": {"prompts": len(asked), "tokens": subject.answer_tokens},
        "merge": merge,
        "files": files,
        "adapter": adapter,
        "versions": library_versions(),
        "seconds": round(time.monotonic() - started, 1),
    }


def _files(
    subject: Subject,
    tokenizer: Any,
    rows: list[list[int]],
    asked: list[list[int]],
    stop: set[int],
    first: Any,
    second: Any,
) -> dict[str, Any]:
    """Each GGUF file against the merged model, the adapter's against the adapter in PEFT."""
    new = _new(rows)
    raw, bos = read_tokenizer(subject.merged), tokenizer.special.get("bos_token")
    texts = [comparable(text, raw, bos) for text in (*hard_strings(), *subject.texts)]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    large = sum(s.size / (4 if s.dtype == "F32" else 2) for s in list_tensors(subject.merged).values()) > BILLIONS
    rendered: tuple[int, list[dict[str, str]]] | None = None
    todo: dict[str, Path] = dict(subject.files)
    a = subject.adapter
    if a and a.file and a.base_file:
        todo["adapter"] = a.base_file
    results: dict[str, Any] = {}
    for kind, file in todo.items():
        near, far = DivergenceMeter(), DivergenceMeter()
        with (
            LlamaModel(file, context=CONTEXT + subject.answer_tokens) as model,
            Progress(f"compare {kind}", sum(map(len, rows)), "tok") as progress,
        ):
            if kind == "adapter" and a and a.file:
                model.use_adapter(a.file)
            different = [text for text, ids in zip(texts, wanted, strict=True) if model.tokenize(text) != ids]
            for i, row in enumerate(rows):
                logits = model.logits(row)
                near.add(_cut(second[0], rows)[i][new[i] :], logits[new[i] :])
                if first:
                    far.add(_cut(first[0], rows)[i][new[i] :], logits[new[i] :])
                progress.advance(len(row))
            said = [model.answer(ids, subject.answer_tokens, stop) for ids in asked]
        tolerance = LARGE.get(kind, TOLERANCES[kind]) if large else TOLERANCES[kind]
        if kind == "adapter" and a and a.file:
            entry = _entry(far.as_json(), tolerance, answer_agreement(first[1], said))
            entry |= _identity(a.file) | {"on": file.name}
            _judge(
                entry,
                [],
                "adapter",
                "the adapter's GGUF on a GGUF of its base does not behave like the adapter in PEFT",
            )
            results[kind] = entry
            continue
        entry = _entry(near.as_json(), tolerance, answer_agreement(second[1], said))
        if first:
            entry["end_to_end"] = far.as_json() | {"answers": answer_agreement(first[1], said)}
        if rendered is None:  # the template travels unchanged in every file, as the audit sees
            rendered = compare_renderings(file, tokenizer)
        entry |= _identity(file) | {
            "strings": len(texts),
            "different_ids": len(different),
            "first_different": different[:3],
        }
        entry["templates"] = {
            "conversations": rendered[0],
            "different": len(rendered[1]),
            "first_different": rendered[1][:1],
        }
        findings = audit_gguf(subject.merged, file)
        if different:
            findings.append(
                (
                    "tokenizer",
                    f"{len(different)} of {len(texts)} strings are tokenised otherwise, {different[0][:40]!r} among them",
                )
            )
        if rendered[1]:
            findings.append(("template", f"{len(rendered[1])} of {rendered[0]} conversations are rendered otherwise"))
        stage = "quantisation" if kind.startswith("q") else "conversion"
        _judge(entry, findings, stage, "it does not behave like the merged model")
        results[kind] = entry
    return results


def _cut(kept: Any, rows: list[list[int]]) -> list[Any]:
    """The stored logits row by row, as views."""
    pieces, place = [], 0
    for row in rows:
        pieces.append(kept[place : place + len(row)])
        place += len(row)
    return pieces


def _new(rows: list[list[int]]) -> list[int]:
    """From which position on each row says what no row before it said: a context that all share, as a template's opening, counts once."""
    starts, seen = [], set()
    for row in rows:
        prefixes = [tuple(row[: i + 1]) for i in range(len(row))]
        starts.append(min(next((i for i, prefix in enumerate(prefixes) if prefix not in seen), len(row)), len(row)))
        seen |= set(prefixes)
    return starts


def _entry(figures: dict[str, Any], tolerance: Tolerance, answers: dict[str, Any]) -> dict[str, Any]:
    return figures | {
        "answers": answers,
        "tolerance": tolerance.as_json(),
        "passed": within_tolerance(figures, tolerance, answers),
    }


def _judge(entry: dict[str, Any], findings: list[Finding], stage: str, words: str) -> None:
    """Whether it passed, and if not, the stage that broke it and why: the first thing that was found, or the figures."""
    entry["findings"] = [{"stage": where, "what": what} for where, what in findings]
    entry["passed"] = entry["passed"] and not findings
    entry["broken_by"] = None if entry["passed"] else findings[0][0] if findings else stage
    entry["why"] = None if entry["passed"] else "; ".join(what for _, what in findings) or words


def _identity(file: Path) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_file(file)}


def failures(certificate: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(what, its entry) of each part that is outside its tolerance, in the order of the stages."""
    parts = [
        ("merged model", certificate["merge"]),
        *((f"{kind} GGUF", f) for kind, f in certificate["files"].items()),
        ("adapter GGUF", certificate["adapter"]),
    ]
    return [(what, entry) for what, entry in parts if entry is not None and not entry["passed"]]


def reject_failed(certificate: dict[str, Any], folder: Path) -> None:
    """Rename what must not be used to `*.rejected.gguf`: files outside their tolerance, and every file of a bad merge."""
    merge = certificate["merge"]
    bad_merge = merge is not None and not merge["passed"]
    entries = [(entry, bad_merge) for entry in certificate["files"].values()] + [(certificate["adapter"], False)]
    for entry, all_bad in entries:
        if entry is not None and (all_bad or not entry["passed"]):
            file = folder / entry["file"]
            entry["file"] = f"{file.stem}.rejected.gguf"
            file.replace(folder / entry["file"])


def require_passed(certificate: dict[str, Any], where: str = "gguf/parity.json") -> None:
    """Fail on anything outside its tolerance.

    Raises:
        ParityError: naming what, the stage that broke it, and the figures.
    """
    for what, entry in failures(certificate):
        if entry["kl_mean"] is None:
            figures = "its numbers are not finite"
        else:
            allowed = entry["tolerance"]
            figures = f"mean KL {entry['kl_mean']:.2g} of at most {allowed['kl_mean']:.2g}, same first choice {entry['top1']:.3f} of at least {allowed['top1']}"
        raise ParityError(
            f"the {what} must not be used: broken by the stage {entry['broken_by']}: {entry['why']} ({figures}); all figures are in {where}"
        )


def read_certificate(folder: Path) -> dict[str, Any]:
    """`parity.json` of a folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    import json

    try:
        return dict(json.loads((folder / "parity.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'parity.json'} can't be read ({error}): make it with  noesis parity RUN") from None


def show_certificate(certificate: dict[str, Any]) -> None:
    """Print the certificate's figures, a line a stage."""
    parts = [
        ("merged", certificate.get("merge")),
        *certificate["files"].items(),
        ("adapter", certificate.get("adapter")),
    ]
    for what, figure in parts:
        if figure is not None:
            answers = figure["answers"]
            say(
                f"  {what}: mean KL {figure['kl_mean']:.1e}, same first choice {figure['top1']:.3f} at {certificate['positions']:,} positions, "
                f"greedy answers equal for {answers['shared']:.0%} of their length"
            )
    if other := (certificate.get("merge") or {}).get("on_original_weights"):
        say(
            f"  the adapter on the base's original weights instead: mean KL {other['kl_mean']:.1e}, same first choice {other['top1']:.3f}"
        )
    say(f"  token ids equal on {certificate['strings']} strings, chat templates rendered alike")
