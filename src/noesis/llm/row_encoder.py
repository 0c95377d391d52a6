"""Encodes conversations with one tokenizer and remembers the rows, so that a run tokenises each conversation once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noesis.core.messages import Message
from noesis.llm.chat_template import encode
from noesis.llm.token_rows import TokenRow
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer


class RowEncoder:
    """Memory for `encode`: the same messages with the same answer give the same row without tokenising again.

    It holds every row that it made; where a dataset is too large for that, call `encode`.
    """

    def __init__(self, tokenizer: ChatTokenizer, folder: Path | None = None) -> None:
        self.tokenizer = tokenizer
        self.folder = folder  # of the model; None if unknown
        self._rows: dict[tuple[tuple[tuple[str, str], ...], str], TokenRow] = {}

    def encode(self, messages: Sequence[Message], answer: str, *, name: str) -> TokenRow:
        """The row of `messages` followed by `answer`.

        Args:
            name: the row's id, for errors.

        Raises:
            TrainingError: as `noesis.llm.chat_template.encode`.
        """
        key = (tuple((m["role"], m["content"]) for m in messages), answer)
        if key not in self._rows:
            self._rows[key] = encode(self.tokenizer, list(messages), answer, name=name)
        return self._rows[key]


def open_encoder(folder: Path) -> RowEncoder:
    """The encoder of a model folder.

    Raises:
        ModelError: its tokenizer or chat template is missing.
    """
    return RowEncoder(load_tokenizer(folder), folder)


def encoder_for(folder: Path, known: RowEncoder | None) -> RowEncoder:
    """`known` if it is that of the model folder, else a new encoder.

    Raises:
        ModelError: as `open_encoder`.
    """
    return known if known is not None and known.folder == folder else open_encoder(folder)
