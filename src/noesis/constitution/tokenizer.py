"""A model's tokenizer and chat template without transformers or torch: exact token counts in a fraction of a second.

The template runs in Jinja's immutable sandbox with the settings that transformers uses (a test compares the two on every model
that the tests have).
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer as _Tokenizer

from noesis.errors import ModelError


class ChatTokenizer:
    """Encodes text and renders conversations as the model's own Hugging Face tokenizer would."""

    def __init__(self, backend: Any, template: str, special: dict[str, str]) -> None:
        self.backend = backend
        self.special = special
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self.template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template does not compile: {error}") from None
        eos = special.get("eos_token")
        self.eos_token_id: int | None = backend.token_to_id(eos) if eos else None

    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False) -> str:
        """The conversation as text.

        Raises:
            ModelError: the template refuses it (no system role, turns out of order).
        """
        if tokenize:
            raise ValueError("render first, then tokenise")
        try:
            return self.template.render(messages=conversation, add_generation_prompt=add_generation_prompt, **self.special)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template refuses this conversation: {error}") from None

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.backend.id_to_token(i) for i in ids]

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens kept."""
        return str(self.backend.decode(ids, skip_special_tokens=False))


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: tokenizer.json or the chat template is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json: only models with a fast tokenizer can be trained")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) if (folder / "tokenizer_config.json").is_file() else {}
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ModelError(f"{folder} has no chat template: use the instruct version of the model")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    backend = _Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return ChatTokenizer(backend, template, special)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
