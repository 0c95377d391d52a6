"""The parity certificate as data (`parity.json`): what was compared, how far apart it was, and whether that passes.

Made by `certify`, stored as the result of the stage `gguf`, read by the server, the report and the summary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from noesis.core.console import command
from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.rooted import is_name


@dataclass(frozen=True)
class Tolerance:
    """What a sound export stays within."""

    kl_mean: float  # nats, at most
    top1: float  # share of positions with the same most likely token, at least
    answers: float = 0.0  # mean share of a greedy answer before the first different token, at least

    def to_json(self) -> dict[str, float]:
        return {"kl_mean": self.kl_mean, "top1": self.top1, "answers": self.answers}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Tolerance:
        return cls(raw["kl_mean"], raw["top1"], raw["answers"])


@dataclass(frozen=True)
class Divergence:
    """Distance between the next-token distributions of two models, over all positions. None: not a finite number."""

    kl_mean: float | None  # nats
    kl_max: float | None  # nats
    top1: float | None  # share of positions with the same most likely token
    max_logit_difference: float | None

    def to_json(self) -> dict[str, float | None]:
        return {
            "kl_mean": self.kl_mean,
            "kl_max": self.kl_max,
            "top1": self.top1,
            "max_logit_difference": self.max_logit_difference,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Divergence:
        return cls(raw["kl_mean"], raw["kl_max"], raw["top1"], raw["max_logit_difference"])


@dataclass(frozen=True)
class AnswerAgreement:
    """Greedy answers of two models to the same prompts."""

    prompts: int
    tokens: int  # of the reference's answers
    identical: int  # answers equal to the last token
    shared: float  # mean share of an answer before the first different token

    def to_json(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "identical": self.identical,
            "shared": self.shared,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> AnswerAgreement:
        return cls(raw["prompts"], raw["tokens"], raw["identical"], raw["shared"])


@dataclass(frozen=True)
class Finding:
    """A known fault that the audit found in a file."""

    stage: str  # merge, tokenizer, template or conversion
    what: str

    def to_json(self) -> dict[str, str]:
        return {"stage": self.stage, "what": self.what}


@dataclass(frozen=True)
class GgufFile:
    """The file that was measured."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(_("{name!r} is no name of a file", name=self.name))

    def to_json(self) -> dict[str, Any]:
        return {"file": self.name, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class TokenizerCheck:
    """Token ids of llama.cpp against the model's own tokenizer."""

    strings: int
    different: int
    examples: tuple[str, ...]  # the first strings that differ

    def to_json(self) -> dict[str, Any]:
        return {
            "strings": self.strings,
            "different_ids": self.different,
            "first_different": list(self.examples),
        }


@dataclass(frozen=True)
class TemplateCheck:
    """Conversations as llama.cpp renders them against the model's own chat template."""

    conversations: int
    different: int
    examples: tuple[dict[str, str], ...]  # the first that differ, as {"model": …, "llama.cpp": …}

    def to_json(self) -> dict[str, Any]:
        return {
            "conversations": self.conversations,
            "different": self.different,
            "first_different": list(self.examples),
        }


@dataclass(frozen=True)
class Comparison:
    """One export against its reference. The fields after `why` are set only where they apply."""

    divergence: Divergence
    answers: AnswerAgreement
    tolerance: Tolerance
    passed: bool
    findings: tuple[Finding, ...] = ()
    broken_by: str | None = None  # the stage at fault: merge, tokenizer, template, conversion, quantisation or adapter
    why: str | None = None
    # the merged model
    update_kept: dict[str, float] | None = None  # weight → how many times the adapter's update is in it
    on_original_weights: Divergence | None = None  # of the adapter on the base's original, unquantised weights
    # a GGUF file
    end_to_end: tuple[Divergence, AnswerAgreement] | None = None  # against the adapter on its base
    file: GgufFile | None = None
    tokenizer: TokenizerCheck | None = None
    templates: TemplateCheck | None = None
    # the adapter's GGUF
    base_file: str | None = None  # the GGUF of the base that it was put on

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            **self.divergence.to_json(),
            "answers": self.answers.to_json(),
            "tolerance": self.tolerance.to_json(),
            "passed": self.passed,
        }
        if self.update_kept is not None:
            out["update_kept"] = self.update_kept
        if self.on_original_weights is not None:
            out["on_original_weights"] = self.on_original_weights.to_json()
        if self.end_to_end is not None:
            divergence, answers = self.end_to_end
            out["end_to_end"] = {**divergence.to_json(), "answers": answers.to_json()}
        for part in (self.file, self.tokenizer):
            if part is not None:
                out |= part.to_json()
        if self.templates is not None:
            out["templates"] = self.templates.to_json()
        if self.base_file is not None:
            out["on"] = self.base_file
        out["findings"] = [finding.to_json() for finding in self.findings]
        return out | {"broken_by": self.broken_by, "why": self.why}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Comparison:
        elsewhere, end, templates = (raw.get(key) for key in ("on_original_weights", "end_to_end", "templates"))
        return cls(
            divergence=Divergence.from_json(raw),
            answers=AnswerAgreement.from_json(raw["answers"]),
            tolerance=Tolerance.from_json(raw["tolerance"]),
            passed=bool(raw["passed"]),
            findings=tuple(Finding(found["stage"], found["what"]) for found in raw["findings"]),
            broken_by=raw["broken_by"],
            why=raw["why"],
            update_kept=raw.get("update_kept"),
            on_original_weights=Divergence.from_json(elsewhere) if elsewhere else None,
            end_to_end=(Divergence.from_json(end), AnswerAgreement.from_json(end["answers"])) if end else None,
            file=GgufFile(raw["file"], raw["bytes"], raw["sha256"]) if "file" in raw else None,
            tokenizer=TokenizerCheck(raw["strings"], raw["different_ids"], tuple(raw["first_different"]))
            if "strings" in raw
            else None,
            templates=TemplateCheck(
                templates["conversations"], templates["different"], tuple(templates["first_different"])
            )
            if templates
            else None,
            base_file=raw.get("on"),
        )


@dataclass(frozen=True)
class Certificate:
    """Everything that was measured in one go."""

    texts: int  # compared at every position
    positions: int
    reference: str
    strings: int  # whose token ids were compared, in addition to the texts
    prompts: int  # answered greedily
    answer_tokens: int  # at most, of each
    merge: Comparison | None  # None: there was no adapter to compare the merged model with
    files: dict[str, Comparison] = field(default_factory=dict)  # kind (`f16`, `q8_0`) → its comparison
    adapter: Comparison | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    prompts_from: str = ""

    def comparisons(self) -> Iterator[tuple[str, Comparison]]:
        """(name, comparison) of each part, in pipeline order: `merged`, the kinds of files, `adapter`."""
        if self.merge is not None:
            yield "merged", self.merge
        yield from self.files.items()
        if self.adapter is not None:
            yield "adapter", self.adapter

    def to_json(self) -> dict[str, Any]:
        out = {
            "texts": self.texts,
            "positions": self.positions,
            "reference": self.reference,
            "strings": self.strings,
            "answered": {"prompts": self.prompts, "tokens": self.answer_tokens},
            "merge": self.merge.to_json() if self.merge else None,
            "files": {kind: comparison.to_json() for kind, comparison in self.files.items()},
            "adapter": self.adapter.to_json() if self.adapter else None,
            "versions": self.versions,
            "seconds": self.seconds,
        }
        return out | ({"prompts_from": self.prompts_from} if self.prompts_from else {})

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Certificate:
        """Read a certificate.

        Raises:
            ModelError: a part of it is missing or is not what it should be.
        """
        try:
            if wrong := [kind for kind in raw["files"] if not is_name(kind)]:
                raise ModelError(
                    _(
                        "the parity certificate names {wrong!r}, which is no kind of GGUF file: measure again",
                        wrong=wrong[0],
                    )
                )
            return cls(
                texts=raw["texts"],
                positions=raw["positions"],
                reference=raw["reference"],
                strings=raw["strings"],
                prompts=raw["answered"]["prompts"],
                answer_tokens=raw["answered"]["tokens"],
                merge=Comparison.from_json(raw["merge"]) if raw["merge"] else None,
                files={kind: Comparison.from_json(found) for kind, found in raw["files"].items()},
                adapter=Comparison.from_json(raw["adapter"]) if raw["adapter"] else None,
                versions=raw["versions"],
                seconds=raw["seconds"],
                prompts_from=raw.get("prompts_from", ""),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                _(
                    "the parity certificate is damaged ({name}: {error}): measure again with  {command}",
                    name=type(error).__name__,
                    error=error,
                    command=command("parity", "RUN"),
                )
            ) from None
