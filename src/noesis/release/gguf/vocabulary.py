"""A model's tokenizer as GGUF metadata: byte-level BPE, and SentencePiece-like BPE with byte fallback.

llama.cpp names each pre-tokenizer; the name is looked up by a hash of the token ids of one hard text. The text and the
table of hashes are llama.cpp's (MIT, `convert_hf_to_gguf.py`). The hash alone proves nothing: the certificate compares
token ids on 500 strings.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError, TrainingError
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.llm.chat_template import end_of_turn
from noesis.llm.gguf.families import unsupported
from noesis.llm.gguf.pre_tokenizers import name_of
from noesis.llm.tokenizer import LARGEST, chat_template_of, load_tokenizer, tokenizer_settings

PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
# The four families only. Llama 3's hash has two variants: with a post-processor that adds BOS the ids differ.
HASHES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
}


def write_vocabulary(writer: Any, model: Path, size: int) -> None:
    """Write tokens, merges or scores, special ids and the chat template.

    Args:
        size: of the model's embedding; ids without a token become padding.

    Raises:
        ModelError: an unsupported kind of tokenizer.
    """
    tokenizer = load_tokenizer(model)  # which refuses a file that is no tokenizer's
    raw = read_tokenizer(model)
    if raw["model"]["type"] != "BPE":
        raise unsupported(model, _("a {raw} tokenizer can't be converted here", raw=raw["model"]["type"]))
    if raw["model"].get("byte_fallback"):
        _write_pieces(writer, raw, tokenizer, size)
    else:
        _write_byte_level(writer, raw, tokenizer, size, pre_tokenizer(raw, tokenizer, model))
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        token = tokenizer.special.get(key)
        token_id = tokenizer.token_id(token) if token else None
        if token_id is not None:
            add(token_id)
    turn = turn_end(tokenizer)
    if turn is not None and turn != tokenizer.eos_token_id:
        writer.add_eot_token_id(turn)  # else llama.cpp goes on after it, unless it knows the token by name
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(model))


def turn_end(tokenizer: Any) -> int | None:
    """The id of the token that ends an answer; None where the template has none (a base model's)."""
    try:
        return end_of_turn(tokenizer)
    except (ModelError, TrainingError):
        return None


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer adds a BOS by itself."""
    bos = tokenizer.special.get("bos_token")
    return bool(bos) and tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [tokenizer.token_id(bos)]


def chat_template(model: Path) -> str:
    """The model's own chat template."""
    return chat_template_of(model, tokenizer_settings(model))


def pre_tokenizer(raw: dict[str, Any], tokenizer: Any, model: Path) -> str:
    """llama.cpp's name of the pre-tokenizer: looked up by hash, else by the structure of tokenizer.json.

    Raises:
        ModelError: an unknown pre-tokenizer.
    """
    found = hashlib.sha256(str(tokenizer(PROBE, add_special_tokens=True)["input_ids"]).encode()).hexdigest()
    if found in HASHES:
        return HASHES[found]
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if (name := name_of(steps)) is not None:
        return name
    kinds = [step.get("type") for step in steps]
    raise unsupported(model, _("this tokenizer's pre-tokenizer ({map}) is unknown", map=", ".join(map(str, kinds))))


def _write_byte_level(writer: Any, raw: dict[str, Any], tokenizer: Any, size: int, pre: str) -> None:
    """Byte-level BPE: Llama 3, Qwen2, SmolLM2, Mistral's Tekken."""
    texts, kinds = _tokens(raw, tokenizer, size)
    merges = [
        m if isinstance(m, str) else " ".join(part.replace(" ", "Ġ") for part in m) for m in raw["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)


def _write_pieces(writer: Any, raw: dict[str, Any], tokenizer: Any, size: int) -> None:
    """Pieces of text with `▁` for a space (Mistral, Gemma).

    llama.cpp joins the neighbours whose result scores highest; the order of the merges stands in for the scores, from
    which it was made.
    """
    import gguf

    texts, kinds = _tokens(raw, tokenizer, size)
    rank: dict[str, int] = {}
    for i, merge in enumerate(raw["model"]["merges"]):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), i)
    scores = [float(-rank[text] - 1) if text in rank else -1e6 for text in texts]
    unknown = raw["model"].get("unk_token")
    for i, text in enumerate(texts):
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            kinds[i] = gguf.TokenType.BYTE
        elif text == unknown:
            kinds[i] = gguf.TokenType.UNKNOWN
        elif kinds[i] == gguf.TokenType.USER_DEFINED:
            texts[i] = text.replace("▁", " ")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(_space_prefix(raw))


def _space_prefix(raw: dict[str, Any]) -> bool:
    """Whether the tokenizer adds a space at the start of a text and after each control token, as llama.cpp would."""
    pre = raw.get("pre_tokenizer") or {}
    return any(step.get("type") == "Prepend" for step in _normalizers(raw)) or (
        pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "always"
    )


def comparable(text: str, raw: dict[str, Any], bos: str | None) -> str:
    """`text` in a form that both tokenizers must read alike, without two steps that llama.cpp omits by design.

    Qwen2's tokenizer composes characters first (NFC); llama.cpp takes them as they come. Mistral 0.3's adds a space
    to a text that starts without a control token, which no rendered conversation does.
    """
    for step in _normalizers(raw):
        if step.get("type") in ("NFC", "NFKC"):
            text = unicodedata.normalize(step["type"], text)
    pre = raw.get("pre_tokenizer") or {}
    first_only = pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "first"
    return f"{bos}{text}" if bos and first_only else text


def read_tokenizer(model: Path) -> dict[str, Any]:
    """tokenizer.json, parsed.

    Raises:
        ModelError: it is missing or can't be read.
    """
    file = model / "tokenizer.json"
    try:
        return read_json_file(file, LARGEST)
    except (OSError, ValueError) as error:
        raise ModelError(_("{file} can't be read: {error}; fetch the model again", file=file, error=error)) from None


def _normalizers(raw: dict[str, Any]) -> list[dict[str, Any]]:
    steps = raw.get("normalizer") or {}
    return list(steps.get("normalizers", [steps]))


def _tokens(raw: dict[str, Any], tokenizer: Any, size: int) -> tuple[list[str], list[Any]]:
    """(texts, gguf token types) of the ids below `size`; ids without a token are padding.

    Raises:
        ModelError: a token that no text may contain has an id beyond them.
    """
    import gguf

    beyond = [tokenizer.added[i] for i in sorted(tokenizer.added) if i >= size and i in tokenizer.control_ids]
    if beyond:
        raise ModelError(
            _(
                "the token {beyond!r} is not among the model's {size:,}: it was added to the tokenizer alone; "
                "resize the model's embedding, or take the token out of the tokenizer's files",
                beyond=beyond[0],
                size=size,
            )
        )
    by_id = {int(i): text for text, i in raw["model"]["vocab"].items()} | tokenizer.added
    texts, kinds = [], []
    for i in range(size):
        texts.append(by_id.get(i, f"[PAD{i}]"))
        if i not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif i in tokenizer.control_ids:
            kinds.append(gguf.TokenType.CONTROL)
        else:
            kinds.append(gguf.TokenType.USER_DEFINED if i in tokenizer.added else gguf.TokenType.NORMAL)
    return texts, kinds
