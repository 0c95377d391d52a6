"""How long the examples are in tokens of the model that is to be trained, and which do not fit its window."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.errors import NoesisError
from noesis.core.text import CONTROL_TOKEN
from noesis.dataset.checks.scan import Column, Table
from noesis.dataset.encode import target_text
from noesis.dataset.jsonl import LineReader
from noesis.llm.chat_template import encode
from noesis.llm.hub import find_tokenizer
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer

MARGIN = 16  # tokens by which a template's own may vary between rows (role names, joins)


@dataclass(frozen=True)
class TokenCounter:
    """Measures records as training would render them."""

    model: str
    tokenizer: ChatTokenizer
    constitution: Constitution
    include_critique: bool
    max_length: int

    @property
    def special_tokens(self) -> re.Pattern[str] | None:
        """What would become a special token of this model, wherever it stands in a text; None if the usual ones are all."""
        tokens = [
            t.content
            for t in self.tokenizer.backend.get_added_tokens_decoder().values()
            if t.special and not CONTROL_TOKEN.fullmatch(t.content)
        ]
        return re.compile("|".join(re.escape(token) for token in sorted(tokens))) if tokens else None

    @property
    def byte_level(self) -> bool:
        """Whether a token is never less than a byte of text."""
        backend = self.tokenizer.backend
        return type(backend.decoder).__name__ == "ByteLevel" or bool(getattr(backend.model, "byte_fallback", False))

    def length(self, record: dict[str, Any]) -> int:
        """Tokens of the whole row.

        Raises:
            TrainingError: the model's template refuses the row.
        """
        answer = target_text(record, include_critique=self.include_critique)
        return len(
            encode(self.tokenizer, opening_messages(self.constitution, record), answer, name=record["id"]).input_ids
        )


def find_token_counter(config: Config, constitution: Constitution) -> TokenCounter | None:
    """The ruler of the configured model; None if its tokenizer is not on this machine."""
    t = config.training
    folder = find_tokenizer(t.model, t.revision)
    if folder is None:
        return None
    return TokenCounter(t.model, _tokenizer(folder), constitution, t.constitutional_ai.include_critique, t.max_length)


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> ChatTokenizer:
    return load_tokenizer(folder)


def too_long(ruler: TokenCounter, table: Table, reader: LineReader) -> Iterator[tuple[int, str]]:
    """(row, what is wrong) of the rows that would not fit the window, or that the template refuses.

    A row whose bytes fit is not tokenised where a token is at least a byte.
    """
    rows = np.arange(len(table))
    if ruler.byte_level:
        texts = table.length if ruler.include_critique else table.text_bytes
        rows = np.flatnonzero(texts + table.turns * MARGIN + _overhead(ruler) > ruler.max_length)
    with Progress("measure", len(rows), "rows") as progress:
        for row in rows:
            try:
                length = ruler.length(reader.record(table.file[row], table.offset[row], table.length[row]))
            except NoesisError as error:
                yield int(row), str(error)
            else:
                if length > ruler.max_length:
                    yield (
                        int(row),
                        f"{length} tokens of {ruler.model}, more than max_length {ruler.max_length} in training_config.yaml; answers are never cut",
                    )
            progress.advance(1)


def _overhead(ruler: TokenCounter) -> Column:
    """Tokens of the system prompt and the template, by the longer language."""
    probe = {"id": "(probe)", "prompt": "a", "response_revised": "b", "critique": "c"}
    return np.int64(max(ruler.length(probe | {"language": language}) for language in ("pt", "en")) + MARGIN)  # type: ignore[return-value]
