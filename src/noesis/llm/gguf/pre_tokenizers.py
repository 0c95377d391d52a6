"""llama.cpp's names of the ways in which byte-level BPE cuts a text first, and how tokenizer.json says the same."""

from __future__ import annotations

from typing import Any

# The patterns of Llama 3 and Qwen2, which differ in how many digits stay together.
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
}
SAME_AS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # characters are composed first (NFC), which llama.cpp leaves out by design
WHOLE_TOKENS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a piece that is a token is not merged from bytes


def name_of(steps: list[dict[str, Any]]) -> str | None:
    """llama.cpp's name of the steps of tokenizer.json's `pre_tokenizer`; None for others than those below."""
    kinds = [step.get("type") for step in steps]
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(steps[0].get("pattern", {}).get("Regex", ""))
        return next((name for name, known in PATTERNS.items() if known == pattern), None)
    return None


def pre_tokenizer(name: str) -> Any:
    """The `tokenizers.pre_tokenizers` object that llama.cpp calls `name`; None for names that are not in this table."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return cut
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])
    pattern = PATTERNS.get(SAME_AS.get(name, name))
    if pattern is None:
        return None
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
