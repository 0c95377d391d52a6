"""A model's tokenizer and chat template without transformers or torch: exact token counts in a fraction of a second.

The template runs in Jinja's immutable sandbox with the settings that transformers uses; a test compares the two on the
templates of five families of models. One difference is deliberate: a template that asks for today's date always gets
the same one, so that the same examples make the same rows on every day (docs/decisions/0009-fixed-date.md).

A template can loop for ever and a tokenizer can take all memory. Those of a model that is not the embedded one
therefore run in a child process with limits (`isolated/`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.llm.embedded import tokenizer_folders
from noesis.llm.isolated.remote_tokenizer import RemoteTokenizer
from noesis.llm.isolated.tokenizer_worker import LocalTokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LONGEST_TEMPLATE = 500_000  # characters; the longest known ones have 20,000
LARGEST = 200_000_000  # bytes of tokenizer.json; the largest known ones have 40 MB
# What `AddedToken` is made with: the rest of an entry is not read.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MOST_ADDED = 100_000  # tokens; the largest known tokenizers have 7,000


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
        self.added = {int(i): str(token) for i, token, _ in known["added"]}  # beside the vocabulary proper
        controls = {int(i): str(token) for i, token, special in known["added"] if special}
        self.added_special = tuple(controls.values())
        # Tokens that no text may contain.
        self.control_ids = frozenset({i for i in ids.values() if i is not None} | controls.keys())

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text.

        Raises:
            ModelError: the template refuses it (no system role, turns out of order), or does not end.
        """
        if tokenize:
            raise ValueError(_("render first, then tokenise"))
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


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: tokenizer.json or the chat template is missing or can't be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            _(
                "{folder} has no tokenizer.json: only models with a fast tokenizer can be used; transformers makes it "
                "from the other files: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
                folder=folder,
            )
        )
    if file.stat().st_size > LARGEST:
        raise ModelError(
            _(
                "{file} has more than {largest:,} bytes: that is no tokenizer of a language model",
                file=file,
                largest=LARGEST,
            )
        )
    settings = tokenizer_settings(folder)
    template = chat_template_of(folder, settings)
    special, added = special_tokens_of(folder, settings)
    make: Callable[..., LocalTokenizer | RemoteTokenizer] = (
        LocalTokenizer if _is_embedded(file, template) else RemoteTokenizer
    )
    return ChatTokenizer(make(file, template, special, added), special)


def special_tokens_of(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The model's special tokens by role, and what is to be added to those of tokenizer.json, as transformers does.

    Older tokenizers name some of them in special_tokens_map.json alone, others under `added_tokens_decoder`.

    Args:
        settings: tokenizer_config.json.

    Returns:
        role (`eos_token`) → token; the arguments of an `AddedToken` each, in order. Those that are in tokenizer.json
        already are among them.

    Raises:
        ModelError: a file can't be read, or a token is none.
    """
    listed = settings.get("added_tokens_decoder")
    older: dict[str, Any] = {}
    if listed is None:  # then transformers reads the older files, of which the first takes precedence
        settings = settings | _read_settings(folder / "special_tokens_map.json")
        older = _read_settings(folder / "added_tokens.json")  # token → id
    try:
        special = {role: _added_token(settings[role])["content"] for role in SPECIAL if settings.get(role)}
        more = [
            entry for key in ("additional_special_tokens", "extra_special_tokens") for entry in _each(settings.get(key))
        ]
        named = [_added_token(entry) | {"special": True} for entry in (*(settings[role] for role in special), *more)]
        contents = {token["content"] for token in named}
        added = [_added_token(entry) for _, entry in sorted((listed or {}).items(), key=lambda item: int(item[0]))]
        added += [
            {"content": token, "normalized": token not in contents, "special": token in contents}
            for token, _ in sorted(older.items(), key=lambda item: int(item[1]))
        ]
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(
            _(
                "{folder}: its special tokens can't be read ({error!r}): fetch the model again",
                folder=folder,
                error=error,
            )
        ) from None
    added += named
    if len(added) > MOST_ADDED:
        raise ModelError(
            _("{folder} has {added:,} special tokens: it is damaged or hostile", folder=folder, added=len(added))
        )
    return special, added


def _each(tokens: Any) -> list[Any]:
    """The tokens of a list, or of names with a token each. Raises TypeError where it is neither."""
    if not isinstance(tokens, (list, dict, type(None))):
        raise TypeError(_("a list of tokens is {name}", name=type(tokens).__name__))
    return list(tokens.values() if isinstance(tokens, dict) else tokens or ())


def _added_token(entry: Any) -> dict[str, Any]:
    """The arguments of an `AddedToken`. Raises TypeError or KeyError where the entry is none."""
    if isinstance(entry, str):
        return {"content": entry, "normalized": False}
    content = entry["content"]
    if not isinstance(content, str) or not content:
        raise TypeError(_("a token is {content!r}", content=content))
    return {"content": content} | {flag: bool(entry[flag]) for flag in FLAGS if flag in entry}


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none.

    Raises:
        ModelError: it can't be read.
    """
    return _read_settings(folder / "tokenizer_config.json")


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return read_json_file(file)
    except ValueError as error:
        raise ModelError(_("{file} can't be read: {error}; fetch the model again", file=file, error=error)) from None


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
            raise ModelError(_("{file} is not UTF-8: {error}; fetch the model again", file=file, error=error)) from None
    elif isinstance(template, list):  # several named templates: the default one
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise ModelError(_("{folder} has no chat template: use the instruct version of the model", folder=folder))
    if len(template) > LONGEST_TEMPLATE:
        raise ModelError(
            _(
                "{folder}: its chat template is longer than {longest_template:,} characters: it is hostile",
                folder=folder,
                longest_template=LONGEST_TEMPLATE,
            )
        )
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
