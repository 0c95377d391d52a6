"""The tokenizer of a GGUF file as tokenizer.json, whose token ids are compared with llama.cpp's on 500 hard strings."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import write_text
from noesis.core.i18n import _
from noesis.llm.from_gguf.config import refused
from noesis.llm.from_gguf.dequantise import load_gguf_tokenizer
from noesis.llm.gguf.hard_strings import hard_strings
from noesis.llm.gguf.header import NO_TOKEN, GgufHeader
from noesis.llm.gguf.pre_tokenizers import COMPOSED, WHOLE_TOKENS_FIRST, pre_tokenizer
from noesis.llm.isolated.llama_process import LlamaProcess
from noesis.llm.isolated.remote_tokenizer import RemoteTokenizer

AS_IT_IS = "TokenizersBackend"  # the class of transformers that takes tokenizer.json as it is
SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}  # role → name in keys
TEMPLATE = "tokenizer.chat_template"


def write_tokenizer(gguf: Path, header: GgufHeader, folder: Path, *, shown: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`.

    Args:
        shown: the file's name in messages.

    Raises:
        ModelError: transformers can't read the vocabulary, or tokenises otherwise than llama.cpp.
    """
    known = header.metadata
    llama = _start(gguf, shown)
    try:
        tokens: list[str] = known["tokenizer.ggml.tokens"]
        backend = _read(gguf, known, shown)
        backend.post_processor = _post_processor(llama, tokens)
        raw = json.loads(backend.to_str())
        # transformers adds the special tokens of its own default tokenizer, which the model has no rows for
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < len(tokens)]
        write_text(folder / "tokenizer.json", json.dumps(raw, ensure_ascii=False))
        ids = {role: known.get(f"tokenizer.ggml.{name}_token_id", NO_TOKEN) for role, name in SPECIAL.items()}
        special = {role: tokens[i] for role, i in ids.items() if i != NO_TOKEN}
        context = known[f"{known['general.architecture']}.context_length"]
        settings = {"tokenizer_class": AS_IT_IS, "model_max_length": context} | special
        write_text(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=2))
        write_text(folder / "chat_template.jinja", known[TEMPLATE])
        _compare(RemoteTokenizer(folder / "tokenizer.json", known[TEMPLATE], special, []), llama, _pre(known), shown)
    finally:
        llama.close()


def _start(gguf: Path, shown: Path) -> LlamaProcess:
    settings = {"model": {"path": str(gguf)}, "n_ctx": 512, "n_parallel": 1, "warmup": False, "cache_ram_mib": 0}
    try:
        return LlamaProcess(settings)
    except ModelError as error:
        raise refused(shown, _("llama.cpp can't load it ({error})", error=error)) from None


def _read(gguf: Path, known: dict[str, Any], shown: Path) -> Any:
    """The `tokenizers.Tokenizer` of transformers, with what it loses put back."""
    try:
        backend = load_gguf_tokenizer(gguf).backend_tokenizer
        if known.get("tokenizer.ggml.model") == "gpt2":
            from tokenizers.normalizers import NFC

            name = _pre(known)
            if (own := pre_tokenizer(name)) is not None:
                backend.pre_tokenizer = own
            if name in COMPOSED:
                backend.normalizer = NFC()
            if name in WHOLE_TOKENS_FIRST:
                backend.model.ignore_merges = True
        else:
            _cut_as_pieces(backend, prefix=known.get("tokenizer.ggml.add_space_prefix", True))
    except OSError:
        raise  # of the disk
    except Exception as error:  # tokenizers raises no class of its own
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise refused(shown, _("transformers can't read its tokenizer ({why})", why=why)) from None
    return backend


def _cut_as_pieces(backend: Any, *, prefix: bool) -> None:
    """Pieces with `▁` for a space, as llama.cpp has them: with `prefix`, one more at the start of each text."""
    from tokenizers import decoders, normalizers

    start = [normalizers.Prepend("▁")] if prefix else []
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _pre(known: dict[str, Any]) -> str:
    """llama.cpp's name of the way in which texts are cut first."""
    return str(known.get("tokenizer.ggml.pre"))


def _post_processor(llama: LlamaProcess, tokens: list[str]) -> Any:
    """What adds the tokens that llama.cpp puts around a text: the file's flag may be missing."""
    from tokenizers.processors import TemplateProcessing

    plain, full = _ids(llama, "a", adds=False), _ids(llama, "a", adds=True)
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    added = [*full[:start], *full[start + len(plain) :]]
    names = [f"<{i}>" for i in added]
    special = [{"id": name, "ids": [i], "tokens": [tokens[i]]} for name, i in zip(names, added, strict=True)]
    return TemplateProcessing(single=[*names[:start], "$A", *names[start:]], special_tokens=special)


def _ids(llama: LlamaProcess, text: str, *, adds: bool) -> list[int]:
    answer = llama.post("/tokenize", {"content": text, "add_special": adds, "parse_special": True})
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list):
        raise ModelError(_("llama.cpp gives no tokens of {text!r}: {answer!r:.200}", text=text, answer=answer))
    return tokens


def _compare(ours: RemoteTokenizer, llama: LlamaProcess, pre: str, shown: Path) -> None:
    """Refuse a tokenizer whose ids differ from llama.cpp's, by the first text that shows it."""
    for given in hard_strings():
        text = unicodedata.normalize("NFC", given) if pre in COMPOSED else given
        for adds in (False, True):
            found, expected = ours.encode(text, adds), _ids(llama, text, adds=adds)
            if found != expected:
                raise refused(
                    shown,
                    _(
                        "transformers' tokenizer makes {found} of {text!r}, llama.cpp {expected}: "
                        "its way of cutting texts is not known here",
                        found=found,
                        text=text,
                        expected=expected,
                    ),
                )
