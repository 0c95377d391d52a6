"""What `modal run scripts/modal_train.py` was asked for: the options checked before anything starts, and as the functions get them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from noesis.core.config import ModalSection
from noesis.core.errors import UsageError
from noesis.llm.clients.spec import parse_spec

METHODS = ("sft", "dpo", "sft+dpo")
LOCAL_JUDGE = "vllm:"  # a judge that this run serves for itself, on the judging card
MOST_CARDS = 8  # of one container


@dataclass(frozen=True)
class CloudRequest:
    """One `modal run`, as plain values: it travels to the containers as JSON."""

    epochs: int
    what: str = "all"  # all, test (judge only), merge (merge only)
    model: str | None = None
    method: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    max_usd: float | None = None
    max_minutes: float | None = None
    max_examples: int | None = None
    resume: bool = False
    fresh: bool = False
    gguf: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    judge_secret: str | None = None
    shards: int = 1  # machines that share the trial's answers
    gate: bool = False
    uploaded: dict[str, str] | None = None  # hashes of train and eval as exported here; None: there is no export here

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CloudRequest:
        return cls(**{**value, "gguf": tuple(value["gguf"]), "judges": tuple(value["judges"])})

    def overrides(self) -> dict[str, Any]:
        """What it lays over the two YAML files; None is skipped there."""
        found: dict[str, Any] = {
            "training.model": self.model,
            "training.num_train_epochs": self.epochs,
            "max_examples": self.max_examples,
            "training.budget.max_usd": self.max_usd,
            "training.budget.max_minutes": self.max_minutes,
        }
        return found | ({"training.method": self.method} if self.method else {})


def checked(
    section: ModalSection,
    *,
    epochs: int,
    test_only: bool,
    merge_only: bool,
    model: str,
    method: str,
    gpu: str,
    gpus: int,
    max_usd: float,
    max_minutes: float,
    max_examples: int,
    resume: bool,
    fresh: bool,
    gguf: str,
    judge: str,
    judge_secret: str,
    shards: int,
    gate: bool,
) -> CloudRequest:
    """The options of the command line as a request; 0 and '' mean not given.

    Raises:
        UsageError: a value that can't work, or two that contradict each other.
    """
    if test_only and merge_only:
        raise UsageError("--test-only and --merge-only exclude each other")
    if resume and fresh:
        raise UsageError("--resume goes on with a run and --fresh begins one: give one of them")
    if epochs < 1:
        raise UsageError(f"--epochs {epochs}: at least 1")
    for name, number in (
        ("--shards", shards),
        ("--gpus", gpus),
        ("--max-usd", max_usd),
        ("--max-minutes", max_minutes),
        ("--max-examples", max_examples),
    ):
        if number < 0:
            raise UsageError(f"{name} {number:g} is below 0")
    if gpus > MOST_CARDS:
        raise UsageError(f"--gpus {gpus}: one container has at most {MOST_CARDS} cards")
    if method and method not in METHODS:
        raise UsageError(f"--method {method!r}: choose {', '.join(METHODS)}")
    if (test_only or merge_only) and (resume or fresh or method):
        raise UsageError("--resume, --fresh and --method are for training; --test-only and --merge-only train nothing")
    judges = () if judge == "none" else tuple(judge.split(",")) if judge else section.judges
    for text in judges:
        check_judge(text, section)
    return CloudRequest(
        epochs=epochs,
        what="test" if test_only else "merge" if merge_only else "all",
        model=model or section.model,
        method=method or None,
        gpu=gpu or None,
        gpus=gpus or None,
        max_usd=max_usd or None,
        max_minutes=max_minutes or None,
        max_examples=max_examples or None,
        resume=resume,
        fresh=fresh,
        gguf=tuple(dict.fromkeys(gguf.split(","))) if gguf else (),
        judges=judges,
        judge_secret=judge_secret or section.judge_secret,
        shards=max(shards, 1),
        gate=gate,
    )


def check_judge(text: str, section: ModalSection) -> None:
    """Refuse a judge that no container could reach.

    Raises:
        UsageError: not one of the forms, or a file or address of this machine.
    """
    if text.startswith(LOCAL_JUDGE):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text.removeprefix(LOCAL_JUDGE)):
            raise UsageError(
                f"--judge {text!r}: name a model of the Hub, for example {LOCAL_JUDGE}Qwen/Qwen2.5-7B-Instruct"
            )
        if not any(other.startswith(LOCAL_JUDGE) for other in section.judges):
            raise UsageError(
                f"--judge {text!r}: put it into training_config.yaml as well, modal: judges: [{text}], so that its image holds vLLM"
            )
        return
    if text.startswith("gguf:"):
        raise UsageError(
            f"--judge {text!r}: a file of this machine is not in the cloud; use {LOCAL_JUDGE}MODEL or openai:BASE_URL:MODEL"
        )
    if parse_spec(text).kind == "openai" and re.search(r"//(localhost|127\.|\[::1\])", text):
        raise UsageError(
            f"--judge {text!r}: an address of this machine is not in the cloud; use {LOCAL_JUDGE}MODEL or an https address"
        )


def gpu_to_rent(request: CloudRequest, section: ModalSection) -> str | None:
    """`gpu=` of the training function where the options change it; None: the fallback list of the YAML file as it is."""
    if request.gpu is None and request.gpus is None:
        return None
    name, _, count = (request.gpu or section.train_gpu[0]).partition(":")
    name = {"A10G": "A10"}.get(name.upper(), name)
    if count and request.gpus and int(count) != request.gpus:
        raise UsageError(f"--gpu {request.gpu} and --gpus {request.gpus} contradict each other")
    cards = request.gpus or int(count or 1)
    return name if cards == 1 else f"{name}:{cards}"
