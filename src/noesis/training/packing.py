"""The sequences of one optimizer step, shared among the cards and packed into rows without padding between them.

A step holds the same sequences however they are packed and on however many cards: only the order of computing changes. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from noesis.llm.token_rows import IGNORED

MULTIPLE = 64  # rows are filled up to a multiple of this many tokens, for whole tiles of the kernels


@dataclass(frozen=True)
class PackedRow:
    """Several sequences in one row.

    input_ids, position_ids: (T,), positions restarting at each sequence; lengths: of the sequences, the last one filler if any;
    positions, targets: (trained tokens,), where in the row the hidden state lies that predicts each target.
    """

    input_ids: list[int]
    position_ids: list[int]
    lengths: list[int]
    positions: list[int]
    targets: list[int]
    members: list[int]  # indices of the sequences
    tokens: int  # without filler


def share(lengths: list[int], cards: int) -> list[list[int]]:
    """Indices for each card, longest first to the card with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(cards)]
    load = [0] * cards
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        card = load.index(min(load))
        shares[card].append(i)
        load[card] += lengths[i]
    return shares


def fill(lengths: list[int], limit: int) -> list[list[int]]:
    """First-fit-decreasing: indices of each row; a sequence longer than `limit` gets a row of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(room) if lengths[i] <= left), None)
        if row is None:
            rows.append([i])
            room.append(limit - lengths[i])
        else:
            rows[row].append(i)
            room[row] -= lengths[i]
    return rows


def pack(
    sequences: list[tuple[list[int], list[int]]], members: list[int], *, filler: int = 0, multiple: int = MULTIPLE
) -> PackedRow:
    """One row of (input_ids, labels) sequences; `members` are their indices in the training set."""
    ids: list[int] = []
    places: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    for input_ids, labels in sequences:
        start = len(ids)
        ids += input_ids
        places += range(len(input_ids))
        for i in range(1, len(labels)):
            if labels[i] != IGNORED:
                positions.append(start + i - 1)
                targets.append(labels[i])
    tokens = len(ids)
    lengths = [len(s[0]) for s in sequences]
    missing = -tokens % multiple
    if missing:
        ids += [filler] * missing
        places += range(missing)
        lengths.append(missing)
    return PackedRow(ids, places, lengths, positions, targets, members, tokens)


def rows_of_step(
    sequences: list[tuple[list[int], list[int]]],
    members: list[int],
    *,
    cards: int,
    card: int,
    pack_length: int,
    micro_batch: int,
    level: bool = False,
) -> list[PackedRow]:
    """This card's rows of a step; never none, since cards add up their gradients together: an idle card gets a row that trains nothing.

    Args:
        pack_length: tokens of a row at most; 0: `micro_batch` sequences a row, in their order.
        level: give every card the same number of rows, by rows that train nothing.
    """
    lengths = [len(s[0]) for s in sequences]
    shares = share(lengths, cards) if cards > 1 else [list(range(len(sequences)))]
    groups = [grouped(mine, lengths, pack_length, micro_batch) for mine in shares]
    rows = [pack([sequences[i] for i in group], [members[i] for i in group]) for group in groups[card]]
    wanted = max(len(g) for g in groups) if level else 1
    if len(rows) < wanted:
        ids = sequences[min(range(len(sequences)), key=lengths.__getitem__)][0]
        rows += [pack([(ids, [IGNORED] * len(ids))], [])] * (wanted - len(rows))
    return rows


def grouped(mine: list[int], lengths: list[int], pack_length: int, micro_batch: int) -> list[list[int]]:
    """`mine`, indices of `lengths`, by the row that each goes into."""
    if pack_length:
        return [[mine[i] for i in row] for row in fill([lengths[i] for i in mine], pack_length)]
    return [mine[i : i + micro_batch] for i in range(0, len(mine), micro_batch)]
