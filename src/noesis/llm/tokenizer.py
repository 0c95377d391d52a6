"""A model's tokenizer and chat template without transformers or torch: exact token counts in a fraction of a second.

The template runs in Jinja's immutable sandbox with the settings that transformers uses; a test compares the two on the
templates of five families of models. One difference is deliberate: a template that asks for today's date always gets
the same one, so that the same examples make the same rows on every day (docs/decisions/0009-fixed-date.md).

A template can loop for ever and a tokenizer can take all memory. Those of a model that is not the embedded one
therefore run in a child process with limits (`child.py`); what it is asked is in `tokenizer_worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.jsonl import read_json_file
from noesis.llm.embedded import tokenizer_folders
from noesis.llm.isolated.child import Child
from noesis.llm.isolated.tokenizer_worker import LocalTokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LONGEST_TEMPLATE = 500_000  # characters; the longest known ones have 20,000
LARGEST = 200_000_000  # bytes of tokenizer.json; the largest known ones have 40 MB
MEMORY = 3_000_000_000  # bytes, of the child
LOAD_S, ANSWER_S = 90.0, 20.0  # the largest tokenizers take seconds to load, a row some milliseconds


class ChatTokenizer:
    """Encodes text and renders conversations as the model's own Hugging Face tokenizer would."""

    def __init__(self, worker: LocalTokenizer | RemoteTokenizer, special: dict[str, str]) -> None:
        self._worker = worker
        self._encode = lru_cache(maxsize=16)(self._encode_uncached)
        self.special = special
        known = worker.describe()
        ids: dict[str, int | None] = known["ids"]
        self.bos_token_id, self.eos_token_id = ids.get("bos_token"), ids.get("eos_token")
        self.byte_level = bool(known["byte_level"])  # whether every token stands for at least one byte of text
        self.added_special = tuple(str(token) for _, token in known["added"])
        # Tokens that no text may contain.
        self.control_ids = frozenset({i for i in ids.values() if i is not None} | {int(i) for i, _ in known["added"]})

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text.

        Raises:
            ModelError: the template refuses it (no system role, turns out of order), or does not end.
        """
        if tokenize:
            raise ValueError("render first, then tokenise")
        return self._worker.render(conversation, add_generation_prompt)

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(self._encode(text, add_special_tokens))}

    def _encode_uncached(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._worker.encode(text, add_special_tokens))

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The names of tokens in the vocabulary."""
        return self._worker.names(ids)

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        return self._worker.token_id(token)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, with special tokens."""
        return self._worker.decode(ids)

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds; joined they are `decode(ids)`.

        A character whose bytes are spread over several tokens belongs to the last of them: the ones before it add "".
        """
        return self._worker.pieces(ids)

    def vocabulary_sha256(self) -> str:
        """Hash of every token with its id."""
        return self._worker.vocabulary_sha256()


class RemoteTokenizer:
    """A LocalTokenizer in a child, with the same methods. One that overstepped a limit is not tried again."""

    def __init__(self, file: Path, template: str, special: dict[str, str]) -> None:
        """Load it. Raises ModelError as LocalTokenizer does, or where a limit is overstepped."""
        self._file, self._loading = file, {"template": template, "special": special}
        self._child: Child | None = None
        self._failure: ModelError | None = None
        self._known: dict[str, Any] = {}
        self._load()

    def _load(self) -> Child:
        status = self._file.stat()
        child = _child_for(str(self._file), status.st_mtime_ns, status.st_size)
        if not child.running:
            _child_for.cache_clear()
            child = _child_for(str(self._file), status.st_mtime_ns, status.st_size)
        self._child = child
        self._known = self._ask_child("load", LOAD_S, self._loading)
        return child

    def _ask_child(self, call: str, seconds: float, arguments: dict[str, Any]) -> Any:
        assert self._child is not None
        of = {"render": "the chat template of {0}", "load": "tokenizer.json or the chat template of {0}"}
        what = of.get(call, "{0}/tokenizer.json").format(self._file.parent)
        try:
            return self._child.ask(what, seconds, call=call, file=str(self._file), arguments=arguments)
        except ModelError as error:
            if not self._child.running:
                self._failure = error
            raise

    def _ask(self, call: str, **arguments: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        if self._child is None or not self._child.running:  # Ctrl-C ended it
            self._load()
        return self._ask_child(call, ANSWER_S, arguments)

    def describe(self) -> dict[str, Any]:
        return self._known

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(self._ask("render", messages=messages, add_generation_prompt=add_generation_prompt))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._ask("encode", text=text, add_special_tokens=add_special_tokens))

    def names(self, ids: list[int]) -> list[str]:
        return list(self._ask("names", ids=ids))

    def token_id(self, token: str) -> int | None:
        found: int | None = self._ask("token_id", token=token)
        return found

    def decode(self, ids: list[int]) -> str:
        return str(self._ask("decode", ids=ids))

    def vocabulary_sha256(self) -> str:
        return str(self._ask("vocabulary_sha256"))

    def pieces(self, ids: list[int]) -> list[str]:
        return list(self._ask("pieces", ids=ids))


@lru_cache(maxsize=4)
def _child_for(file: str, modified_ns: int, size: int) -> Child:
    """The child that reads this version of a tokenizer.json; it ends when nobody holds it any more."""
    return Child("noesis.llm.isolated.tokenizer_worker", memory=MEMORY)


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: tokenizer.json or the chat template is missing or can't be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no tokenizer.json: only models with a fast tokenizer can be trained")
    if file.stat().st_size > LARGEST:
        raise ModelError(f"{file} has more than {LARGEST:,} bytes: that is no tokenizer of a language model")
    settings = tokenizer_settings(folder)
    template = chat_template_of(folder, settings)
    special = {}
    for name in SPECIAL:
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    make: Callable[..., LocalTokenizer | RemoteTokenizer] = (
        LocalTokenizer if _is_embedded(file, template) else RemoteTokenizer
    )
    return ChatTokenizer(make(file, template, special), special)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none.

    Raises:
        ModelError: it can't be read.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        return read_json_file(file)
    except ValueError as error:
        raise ModelError(f"{file} can't be read: {error}; fetch the model again") from None


def chat_template_of(folder: Path, settings: dict[str, Any]) -> str:
    """The model's own chat template, from its file or the settings of its tokenizer.

    Raises:
        ModelError: there is none, or it is not a template's text.
    """
    file = folder / "chat_template.jinja"
    template = settings.get("chat_template")
    if file.is_file():
        try:
            with open(file, encoding="utf-8") as f:
                template = f.read(LONGEST_TEMPLATE + 1)
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not UTF-8: {error}; fetch the model again") from None
    elif isinstance(template, list):  # several named templates: the default one
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise ModelError(f"{folder} has no chat template: use the instruct version of the model")
    if len(template) > LONGEST_TEMPLATE:
        raise ModelError(f"{folder}: its chat template is longer than {LONGEST_TEMPLATE:,} characters: it is hostile")
    return template


def _is_embedded(file: Path, template: str) -> bool:
    """Whether tokenizer and template are those that we made of the embedded model, byte for byte."""
    return any(
        (ours / "tokenizer.json").is_file()
        and (ours / "tokenizer.json").stat().st_size == file.stat().st_size
        and (ours / "tokenizer.json").read_bytes() == file.read_bytes()
        and (ours / "chat_template.jinja").is_file()
        and (ours / "chat_template.jinja").read_text(encoding="utf-8") == template
        for ours in tokenizer_folders()
    )
