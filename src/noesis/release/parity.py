"""Does the GGUF behave like the merged model? Measured at every position of real conversations, not assumed.

The reference is the merged model in float32. Compared are token ids, the Kullback-Leibler divergence of the next-token distributions,
and how often both put the same token first. The tolerances are those at which conversion errors (a missing reordering of query and
key, another pre-tokenizer) and sound files lie far apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.console import Progress
from noesis.errors import ParityError
from noesis.release.llama import LlamaModel

# kind → (largest mean KL in nats, smallest share of equal first choices)
TOLERANCES = {"f32": (1e-5, 0.99), "f16": (2e-5, 0.99), "q8_0": (2e-2, 0.85)}

# Where tokenizers part ways: digits, accents, spaces, code, emoji, other scripts, joined marks.
HARD_STRINGS = [
    "(1936)",
    "3.14159",
    "2024-11-22",
    "R$ 1.234,56",
    "10^6",
    "ação",
    "coração — não!",
    "É verdade?",
    "Dikē, Sophia e Veritas",
    "naïve café",
    "  two  spaces",
    "\ttab",
    "line\n\nbreak",
    "x = f(y[0]);",
    "if a != b:\n    return None",
    "https://example.org/?q=1&r=2",
    "ἀλήθεια",
    "Σωκράτης",
    "日本語のテスト",
    "😀👍🏽",
    "áẽ",
    "don't I'll we've",
    "DON'T",
    "CamelCaseWord",
    "snake_case_word",
    "…",
    "“quotes” ‘single’",
    "½ ¾ ²",
    "1st 2nd 3rd",
    "000123",
    "e.g., i.e.",
    "%%##@@",
]


def check_parity(merged: Path, files: dict[str, Path], texts: list[str], tokenizer: Any, *, max_tokens: int = 96) -> dict[str, Any]:
    """Compare each GGUF with the merged model.

    Args:
        files: kind (`f16`, `q8_0`) → file.
        texts: rendered conversations; the first `max_tokens` of each are compared at every position.
        tokenizer: the merged model's own.

    Returns:
        figures by kind, with `passed` for each; nothing is raised here, so that a failure can be written down first.
    """
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] for text in texts]
    results: dict[str, Any] = {}
    sums = {kind: _Sums() for kind in files}
    models = {kind: LlamaModel(file, context=max(max_tokens, 256)) for kind, file in files.items()}
    try:
        for kind, model in models.items():
            sums[kind].different_ids = [
                text for text in [*HARD_STRINGS, *texts] if model.tokenize(text) != tokenizer(text, add_special_tokens=False)["input_ids"]
            ]
            sums[kind].strings = len(HARD_STRINGS) + len(texts)
        with Progress("compare", sum(map(len, rows)), "tok") as progress:
            for row, reference in zip(rows, _reference(merged, rows), strict=True):
                for kind, model in models.items():
                    sums[kind].add(reference, model.logits(row))
                progress.advance(len(row))
    finally:
        for model in models.values():
            model.__exit__()
    for kind, figure in sums.items():
        results[kind] = figure.as_json(*TOLERANCES[kind])
    return {"texts": len(texts), "positions": sum(map(len, rows)), "reference": "merged model in float32", "files": results}


def require(parity: dict[str, Any]) -> None:
    """Fail on a file outside its tolerance.

    Raises:
        ParityError: naming file and figure.
    """
    for kind, figure in parity["files"].items():
        if not figure["passed"]:
            raise ParityError(
                f"the {kind} GGUF does not behave like the merged model (mean KL {figure['kl_mean']:.2g}, same first choice {figure['top1']:.3f}, "
                f"{figure['different_ids']} of {figure['strings']} strings tokenised otherwise): it must not be used; figures are in gguf/parity.json"
            )


class _Sums:
    """Running figures of one file."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same = 0
        self.largest = 0.0
        self.strings = 0
        self.different_ids: list[str] = []

    def add(self, reference: Any, logits: Any) -> None:
        """Count one row; both (length, vocabulary) float32."""
        import numpy as np

        p, q = _log_softmax(reference), _log_softmax(logits[:, : reference.shape[1]])
        self.kl += [max(0.0, float(k)) for k in (np.exp(p) * (p - q)).sum(axis=-1)]
        self.same += int((reference.argmax(-1) == logits.argmax(-1)).sum())
        self.largest = max(self.largest, float(np.abs(reference - logits[:, : reference.shape[1]]).max()))

    def as_json(self, largest_kl: float, smallest_top1: float) -> dict[str, Any]:
        mean, top1 = sum(self.kl) / len(self.kl), self.same / len(self.kl)
        return {
            "kl_mean": mean,
            "kl_max": max(self.kl),
            "top1": round(top1, 5),
            "max_logit_difference": self.largest,
            "strings": self.strings,
            "different_ids": len(self.different_ids),
            "first_different": self.different_ids[:3],
            "tolerance": {"kl_mean": largest_kl, "top1": smallest_top1},
            "passed": mean <= largest_kl and top1 >= smallest_top1 and not self.different_ids,
        }


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _reference(merged: Path, rows: list[list[int]]) -> Any:
    """The merged model's logits in float32, one row after another."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True).eval()
    for row in rows:
        with torch.inference_mode():
            yield model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy()
