"""How long the examples are in tokens of the model that is to be trained, and which of them exceed its window."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from noesis.constitution.dialogue import opening_messages, with_analysis
from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.errors import ModelError, NoesisError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import NAMED_TOKEN, any_of
from noesis.dataset.checks.rows import RowReader
from noesis.dataset.checks.scan import Table
from noesis.dataset.encode import prompt_messages, target_text
from noesis.dataset.schema import Example
from noesis.llm.chat_template import encode, render
from noesis.llm.hub import find_tokenizer
from noesis.llm.row_encoder import RowEncoder
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer

MARGIN = 16  # tokens by which a template's own may vary between rows (role names, joins)


@dataclass(frozen=True)
class TokenCounter:
    """Measures examples as training would render them.

    encoder: remembers the rows that were measured, for training; None: nothing is remembered
    max_length: tokens
    """

    model: str
    tokenizer: ChatTokenizer
    constitution: Constitution
    include_critique: bool
    max_length: int
    encoder: RowEncoder | None = None

    @property
    def special_tokens(self) -> re.Pattern[str]:
        """Matches what no text may contain: this model's control tokens, and what its template writes in words."""
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.tokenizer.control_ids))
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        try:
            written = NAMED_TOKEN.findall(render(self.tokenizer, turns, add_generation_prompt=True))
        except ModelError:
            written = []  # the template refuses every row: each says so
        return any_of([*tokens, *written], breakable=False)

    def length(self, example: Example) -> int:
        """Tokens of the whole row.

        Raises:
            TrainingError: the model's template refuses the row.
        """
        answer = target_text(example, include_critique=self.include_critique)
        return self._length(prompt_messages(self.constitution, example), answer, example.id)

    def overhead(self) -> int:
        """Tokens of the system prompt and the template, in the language that takes more of them."""
        answer = with_analysis("c", "b") if self.include_critique else "b"
        return max(
            self._length(opening_messages(self.constitution, language, "a"), answer, "(probe)")
            for language in self.constitution.languages
        )

    def _length(self, messages: list[Message], answer: str, name: str) -> int:
        if self.encoder is not None:
            return len(self.encoder.encode(messages, answer, name=name).input_ids)
        return len(encode(self.tokenizer, messages, answer, name=name).input_ids)


def find_token_counter(config: Config, constitution: Constitution, *, remember: bool = False) -> TokenCounter | None:
    """The token counter of the configured model; None if its tokenizer is not on this machine.

    Args:
        remember: keep the rows that are measured, so that training need not tokenise them again.
    """
    t = config.training
    folder = find_tokenizer(t.model, t.revision)
    if folder is None:
        return None
    tokenizer = _tokenizer(folder)
    encoder = RowEncoder(tokenizer, folder) if remember else None
    critique = t.constitutional_ai.include_critique
    return TokenCounter(t.model, tokenizer, constitution, critique, t.max_length, encoder)


def counter_of(encoder: RowEncoder, config: Config, constitution: Constitution) -> TokenCounter:
    """The token counter of the configured model that measures with `encoder`."""
    t = config.training
    critique = t.constitutional_ai.include_critique
    return TokenCounter(t.model, encoder.tokenizer, constitution, critique, t.max_length, encoder)


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> ChatTokenizer:
    return load_tokenizer(folder)


def too_long(counter: TokenCounter, table: Table, reader: RowReader) -> Iterator[tuple[int, str]]:
    """(row, what is wrong) for each row that exceeds the window or that the template refuses.

    Where every token is at least a byte, a row whose bytes fit is not tokenised.
    """
    rows = np.arange(len(table))
    if counter.tokenizer.byte_level:
        texts = table.length if counter.include_critique else table.text_bytes
        rows = np.flatnonzero(texts + table.turns * MARGIN + counter.overhead() + MARGIN > counter.max_length)
    limit = _(
        "more than max_length {max_length} in training_config.yaml; answers are never cut",
        max_length=counter.max_length,
    )
    with Progress(_("measure"), len(rows), _("rows")) as progress:
        for row in rows.tolist():
            try:
                length = counter.length(reader.example(table, row))
            except NoesisError as error:
                yield row, str(error)
            else:
                if length > counter.max_length:
                    yield row, _("{length} tokens of {model}, {limit}", length=length, model=counter.model, limit=limit)
            progress.advance(1)
