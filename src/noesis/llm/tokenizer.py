"""A model's tokenizer and chat template without transformers or torch: exact token counts in a fraction of a second.

The template runs in Jinja's immutable sandbox with the settings that transformers uses; a test compares the two on the
templates of five families of models. One difference is deliberate: a template that asks for today's date always gets
the same one, so that the same examples make the same rows on every day (docs/decisions/0009-fixed-date.md).
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer as _Tokenizer

from noesis.core.errors import ModelError

DATE = datetime(2024, 7, 26)  # what Llama 3.1's own template uses where it gets no date
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
INCOMPLETE = "\ufffd"  # what a decoder puts where the bytes of a character are missing


class ChatTokenizer:
    """Encodes text and renders conversations as the model's own Hugging Face tokenizer would."""

    def __init__(self, backend: Any, template: str, special: dict[str, str]) -> None:
        self.backend = backend
        self._encode = lru_cache(maxsize=16)(self._encode_uncached)
        self.special = special
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = DATE.strftime
        try:
            self.template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template does not compile: {error}") from None
        self.bos_token_id: int | None = self._id("bos_token")
        self.eos_token_id: int | None = self._id("eos_token")
        added = backend.get_added_tokens_decoder()
        named = {i for name in SPECIAL if (i := self._id(name)) is not None}
        # Tokens that no text may contain.
        self.control_ids = frozenset(named | {i for i, token in added.items() if token.special})

    def _id(self, name: str) -> int | None:
        token = self.special.get(name)
        return self.backend.token_to_id(token) if token else None

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text.

        Raises:
            ModelError: the template refuses it (no system role, turns out of order).
        """
        if tokenize:
            raise ValueError("render first, then tokenise")
        try:
            return self.template.render(
                messages=conversation,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special,
            )
        except Exception as error:  # a template is untrusted code: whatever it raises is a refusal
            raise ModelError(f"the model's chat template refuses this conversation: {error}") from None

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(self._encode(text, add_special_tokens))}

    def _encode_uncached(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        # The fast form computes no offsets.
        return tuple(self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The names of tokens in the vocabulary."""
        return [self.backend.id_to_token(i) for i in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, with special tokens."""
        return str(self.backend.decode(ids, skip_special_tokens=False))

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds; joined they are `decode(ids)`.

        A character whose bytes are spread over several tokens belongs to the last of them: the ones before it add "".
        """
        texts: list[str] = []
        start = shown = 0  # decoding restarts at the last whole character, so that a row takes linear time
        for end in range(1, len(ids) + 1):
            before, text = self.decode(ids[start:shown]), self.decode(ids[start:end])
            if text.endswith(INCOMPLETE) and end < len(ids):
                texts.append("")
            else:
                texts.append(text[len(before) :])
                start, shown = shown, end
        return texts


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: tokenizer.json or the chat template is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: only models with a fast tokenizer can be trained")
    config = (
        json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if (folder / "tokenizer_config.json").is_file()
        else {}
    )
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ModelError(f"{folder} has no chat template: use the instruct version of the model")
    special = {}
    for name in SPECIAL:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    backend = _Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return ChatTokenizer(backend, template, special)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's text in some templates; it has no effect here."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own annotation)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
