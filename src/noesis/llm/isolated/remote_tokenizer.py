"""A stranger's tokenizer and chat template in a child process (`child.py`), with limits of time and memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.llm.isolated.child import Child

MEMORY = 3_000_000_000  # bytes, of the child
LOAD_S, ANSWER_S = 90.0, 20.0  # the largest tokenizers take seconds to load, a row some milliseconds


class RemoteTokenizer:
    """A LocalTokenizer in a child, with the same methods. One that overstepped a limit is not tried again."""

    def __init__(self, file: Path, template: str, special: dict[str, str], added: list[dict[str, Any]]) -> None:
        """Load it. Raises ModelError as LocalTokenizer does, or where a limit is overstepped."""
        self._file, self._loading = file, {"template": template, "special": special, "added": added}
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
