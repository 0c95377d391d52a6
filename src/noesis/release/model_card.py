"""The model card (README.md of a merged model): what it was made of, what was measured, what it must not be taken for.

A fine-tune of a Llama carries Llama in its name and Meta's notice (Llama 3.1 Community License, 1.b.i).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from noesis.core.console import printable
from noesis.core.text import counted

LLAMA_NOTICE = (
    "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
LLAMA = re.compile(
    r"llama[\s_-]*(3\.[123]|[23])(?!\d|b\b)", re.IGNORECASE
)  # not the 3 of open_llama_3b, Code Llama 34B
HUB_LICENCES = ("apache-2.0", "mit", "gemma")  # those that the Hub's front matter has a word for, of bases seen so far
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class TrainingFigures:
    """How it was trained; None is unknown."""

    examples: int | None = None
    epochs: int | None = None
    rank: int | None = None
    precision: str | None = None  # of base, arithmetic and adapter, in words
    steps: int | None = None
    first_loss: float | None = None
    final_loss: float | None = None


@dataclass(frozen=True)
class HeldOutFigures:
    """Base against tuned model on the held-out examples."""

    examples: int
    base_loss: float  # nats per token
    tuned_loss: float
    base_accuracy: float
    tuned_accuracy: float
    interval_95: tuple[float, float]  # of the tuned model's accuracy


@dataclass(frozen=True)
class JudgeScore:
    """A mean score of the tuned model in a trial."""

    name: str  # as shown
    mean: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class CardContent:
    """Everything that a card says."""

    name: str
    base: str  # as configured: `smollm2`, a Hub id or a folder; of a GGUF file, its own name
    licence: str  # of the base
    noesis: str  # version
    dataset_sha256: str
    constitution_sha256: str
    config_sha256: str
    base_revision: str | None
    languages: tuple[str, ...] = ()  # of the examples, ISO 639-1
    lineage: str = ""  # of a GGUF file: its quantisation, and what that was made from
    training: TrainingFigures = TrainingFigures()
    held_out: HeldOutFigures | None = None
    verdict: str = "UNDECIDED"
    reason: str = "not judged"
    scores: tuple[JudgeScore, ...] = ()  # of a trial


def llama_release(base: str, *more: str) -> str | None:
    """`Llama 3.1` for a base under one of Meta's licences, None for others.

    Args:
        more: what a GGUF file says of its licence and lineage.
    """
    for text in (base.rsplit("/", 1)[-1], *more):
        if found := LLAMA.search(text):
            return f"Llama {found.group(1)}"
    return None


def display_name(name: str, llama: str | None) -> str:
    """The model's name, with Llama in front where the licence demands it."""
    return f"Llama-{name}" if llama and not name.lower().startswith("llama") else name


def model_card(content: CardContent) -> str:
    """Markdown with the Hub's front matter."""
    known = content.training.examples
    examples = "few examples" if known is None else counted(known, "example")
    c, llama = content, llama_release(content.base, content.licence, content.lineage)
    lines = [
        *_front_matter(c, llama),
        "",
        f"# {_plain(display_name(c.name, llama))}",
        "",
        *([f"Built with {llama.split()[0]}.", ""] if llama else []),
        f"A fine-tune of {_plain(c.base)} by Constitutional AI, made with Noesis {c.noesis}: QLoRA on revised answers,",
        "the adapter merged into the base as it was trained against it (dequantised NF4 weights where the base was",
        "quantised). A GGUF file made of it has a certificate beside it, parity.json: how far it is from this model.",
        "",
        "| | |",
        "|---|---|",
        *_table(c),
        "",
        "Intervals are 95%.",
        "",
        "## Limits",
        "",
        f"Trained on {examples}: it has learned a manner, not new knowledge. It can state falsehoods with",
        "confidence and cite works that do not exist. It is not fit to advise on health, law, money or safety.",
        "Held-out loss and preference accuracy show that training took effect, not that the answers are good; no judge",
        "has approved the model unless the table says so.",
        "",
        f"Licence of the base: {llama + ' Community License' if llama else _plain(c.licence)}.",
        *_llama_notice(llama),
        "",
    ]
    return "\n".join(lines)


def _front_matter(c: CardContent, llama: str | None) -> list[str]:
    said = c.licence.lower().split(" ")[0]
    licence = llama.lower().replace(" ", "") if llama else said if said in HUB_LICENCES else "other"
    return [
        "---",
        f"base_model: {_scalar(EMBEDDED_ON_HUB if c.base == 'smollm2' else c.base)}",
        f"license: {licence}",
        f"language: [{', '.join(c.languages)}]",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
    ]


def _table(c: CardContent) -> list[str]:
    """The rows of the card's table."""
    t, h = c.training, c.held_out
    rows = [
        ("examples", f"{_known(t.examples)}, sha256 {c.dataset_sha256[:16]}"),
        ("constitution", f"sha256 {c.constitution_sha256[:16]}"),
        ("configuration", f"sha256 {c.config_sha256[:16]}"),
        ("base revision", f"{c.base_revision}"),
        *([("base weights", c.lineage)] if c.lineage else []),
        ("epochs, rank", f"{_known(t.epochs)}, {_known(t.rank)}"),
    ]
    if t.precision:
        rows.append(("base in training", t.precision))
    if t.steps and t.first_loss is not None and t.final_loss is not None:
        rows.append(("steps, loss", f"{t.steps}, {t.first_loss:.3f} → {t.final_loss:.3f}"))
    if h:
        low, high = h.interval_95
        accuracy = f"{h.base_accuracy:.2f} → {h.tuned_accuracy:.2f} [{low:.2f}, {high:.2f}]"
        rows += [
            ("held-out loss", f"{h.base_loss:.4f} → {h.tuned_loss:.4f} nats per token"),
            ("preference accuracy", f"{accuracy} on {h.examples} held-out examples"),
        ]
    rows.append(("Tribunal", f"{c.verdict}: {c.reason}"))
    for score in c.scores:
        low, high = score.interval_95
        rows.append((score.name, f"{score.mean:.3f} [{low:.3f}, {high:.3f}]"))
    return [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]


def _plain(text: str) -> str:
    """A foreign text as one line of Markdown that is neither markup nor HTML; what is usual in names stays as it is."""
    text = printable(" ".join(text.split()))
    return re.sub(r"[\\`*|]|\](?=\()", r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def _scalar(text: str) -> str:
    """A text as a YAML scalar: quoted, as JSON has it, unless it is a plain name."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*(/[\w.-]+)*", text, re.ASCII) else json.dumps(text)


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


def _llama_notice(llama: str | None) -> list[str]:
    if llama is None:
        return []
    return [
        LLAMA_NOTICE.format(name=llama),
        "Its Acceptable Use Policy applies to this model too: https://www.llama.com/llama3_1/use-policy/",
    ]
