"""A model's tokenizer and chat template, in the process that it is called in: `LocalTokenizer`.

For a model that is not our own that is a child (`child.py`), where `handle` answers the questions of `tokenizer.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import AddedToken
from tokenizers import Tokenizer as _Tokenizer

from noesis.core.errors import ModelError
from noesis.core.files import sha256_json
from noesis.core.i18n import _

DATE = datetime(2024, 7, 26)  # what Llama 3.1's own template uses where it gets no date
INCOMPLETE = "\ufffd"  # what a decoder puts where the bytes of a character are missing


class LocalTokenizer:
    """A tokenizer.json and a template, loaded here."""

    def __init__(self, file: Path, template: str, special: dict[str, str], added: list[dict[str, Any]]) -> None:
        """Load them.

        Args:
            special: role (`eos_token`) → token, which the template may write.
            added: the arguments of an `AddedToken` each; those that tokenizer.json lacks are added to it.

        Raises:
            ModelError: one of them can't be read.
        """
        try:
            self._backend = _Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no class of its own
            raise ModelError(
                _("{file} can't be read: {error}", file=file, error=" ".join(str(error).split())[:300])
            ) from None
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        for token in added:
            if token["content"] not in known:
                known.add(token["content"])
                self._backend.add_tokens([AddedToken(**token)])
        self._backend.no_truncation()
        self._backend.no_padding()
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = DATE.strftime
        try:
            self._template = environment.from_string(template)
        except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError) as error:
            raise ModelError(
                _("the chat template of {parent} does not compile: {reason}", parent=file.parent, reason=_reason(error))
            ) from None
        self._special, self._folder = special, file.parent

    def describe(self) -> dict[str, Any]:
        """What a `ChatTokenizer` knows of it from the start."""
        found = sorted(self._backend.get_added_tokens_decoder().items())
        return {
            "ids": {name: self._backend.token_to_id(token) for name, token in self._special.items()},
            "added": [(i, token.content, token.special) for i, token in found],
            "byte_level": type(self._backend.decoder).__name__ == "ByteLevel"
            or bool(getattr(self._backend.model, "byte_fallback", False)),
        }

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The conversation as text; the template may refuse it."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except MemoryError:  # a limit, which the child that this runs in names
            raise
        except Exception as error:  # a template is untrusted code: whatever it raises is a refusal
            what = f"the chat template of {self._folder} refuses this conversation"
            raise ModelError(f"{what}: {_reason(error)}") from None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids."""
        # The fast form computes no offsets.
        return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def names(self, ids: list[int]) -> list[str]:
        """The names of tokens in the vocabulary."""
        return [str(self._backend.id_to_token(i)) for i in ids]

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, with special tokens."""
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def vocabulary_sha256(self) -> str:
        """Hash of every token with its id."""
        return sha256_json(self._backend.get_vocab(with_added_tokens=True))

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds: see `ChatTokenizer.pieces`."""
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


_loaded: dict[str, LocalTokenizer] = {}


def handle(call: str, file: str, arguments: dict[str, Any]) -> Any:
    """Answer one question about the tokenizer that was loaded from `file`.

    Args:
        call: `load` with the arguments of a LocalTokenizer, or the name of one of its methods.
    """
    if call == "load":
        _loaded[file] = LocalTokenizer(Path(file), **arguments)
        return _loaded[file].describe()
    method: Callable[..., Any] = getattr(_loaded[file], call)
    return method(**arguments)


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


def _reason(error: Exception) -> str:
    """What an error says; its kind where it says nothing."""
    return str(error)[:500] or type(error).__name__


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
