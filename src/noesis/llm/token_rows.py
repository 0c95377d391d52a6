"""Token rows: what is trained on, with labels."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100  # label of a token that carries no loss (torch.nn.CrossEntropyLoss)


@dataclass(frozen=True)
class TokenRow:
    """One training row.

    input_ids: (length,) token ids of the whole conversation
    labels: (length,) the same ids where the token is trained on, -100 elsewhere
    anchored: at the trained tokens, the model is held to the base's distribution instead of to the token itself
    """

    input_ids: list[int]
    labels: list[int]
    anchored: bool = False

    @property
    def trained(self) -> int:
        """Number of tokens that carry loss."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def predicted(self) -> int:
        """Number of tokens that carry loss and have a token before them to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class DistillPrompt:
    """One prompt of self-distillation, up to where the answer begins.

    student: (length,) token ids as the model is asked
    teacher: (length,) the same with critique and revised answer, which the base reads
    """

    student: list[int]
    teacher: list[int]


@dataclass(frozen=True)
class TokenPair:
    """Two answers to one prompt.

    name: of the row, for messages
    p: probability that `chosen` is the better one, 0.5 to 1
    """

    name: str
    chosen: TokenRow
    rejected: TokenRow
    p: float = 1.0

    @property
    def tokens(self) -> int:
        """Number of tokens of both rows."""
        return len(self.chosen.input_ids) + len(self.rejected.input_ids)

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """(input_ids, labels) of the chosen and of the rejected answer."""
        return [(row.input_ids, row.labels) for row in (self.chosen, self.rejected)]
