"""The sequences of one optimizer step, divided among the GPUs and packed into rows without padding between them.

A step holds the same sequences however they are packed and on however many GPUs: only the order of computing changes.
Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from noesis.llm.token_rows import IGNORED

MULTIPLE = 64  # rows are filled up to a multiple of this many tokens, for whole tiles of the kernels


@dataclass(frozen=True)
class PackedRow:
    """Several sequences in one row of T tokens.

    input_ids, position_ids: (T,), positions restarting at each sequence
    lengths: of the sequences; the last one is filler, if any
    positions, targets: (trained tokens,), each target and the index of the hidden state that predicts it
    members: indices of the sequences in the training set
    tokens: without filler
    """

    input_ids: list[int]
    position_ids: list[int]
    lengths: list[int]
    positions: list[int]
    targets: list[int]
    members: list[int]
    tokens: int


def divide(lengths: list[int], world_size: int) -> list[list[int]]:
    """Indices for each process: the longest first, to the process with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = tokens.index(min(tokens))
        shares[rank].append(i)
        tokens[rank] += lengths[i]
    return shares


def first_fit_decreasing(lengths: list[int], limit: int) -> list[list[int]]:
    """Indices of each row; a sequence longer than `limit` gets a row of its own."""
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
    position_ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    for input_ids, labels in sequences:
        start = len(ids)
        ids += input_ids
        position_ids += range(len(input_ids))
        for i in range(1, len(labels)):
            if labels[i] != IGNORED:
                positions.append(start + i - 1)
                targets.append(labels[i])
    tokens = len(ids)
    lengths = [len(input_ids) for input_ids, _ in sequences]
    missing = -tokens % multiple
    if missing:
        ids += [filler] * missing
        position_ids += range(missing)
        lengths.append(missing)
    return PackedRow(ids, position_ids, lengths, positions, targets, members, tokens)


def rows_of_step(
    sequences: list[tuple[list[int], list[int]]],
    members: list[int],
    *,
    world_size: int,
    rank: int,
    pack_length: int,
    micro_batch: int,
    equal_rows: bool = False,
) -> list[PackedRow]:
    """Rows of a step for the process `rank`; at least one, since all processes sum their gradients.

    A process without sequences gets a row that trains nothing.

    Args:
        pack_length: tokens of a row at most; 0: `micro_batch` sequences a row, in their order.
        equal_rows: give every process the same number of rows, filled up by rows that train nothing.
    """
    lengths = [len(input_ids) for input_ids, _ in sequences]
    shares = divide(lengths, world_size) if world_size > 1 else [list(range(len(sequences)))]
    groups = [group_into_rows(share, lengths, pack_length, micro_batch) for share in shares]
    rows = [pack([sequences[i] for i in group], [members[i] for i in group]) for group in groups[rank]]
    wanted = max(len(g) for g in groups) if equal_rows else 1
    if len(rows) < wanted:
        ids = sequences[min(range(len(sequences)), key=lengths.__getitem__)][0]
        rows += [pack([(ids, [IGNORED] * len(ids))], [])] * (wanted - len(rows))
    return rows


def group_into_rows(indices: list[int], lengths: list[int], pack_length: int, micro_batch: int) -> list[list[int]]:
    """`indices`, which point into `lengths`, grouped by the row that each goes into."""
    if pack_length:
        return [[indices[i] for i in row] for row in first_fit_decreasing([lengths[i] for i in indices], pack_length)]
    return [indices[i : i + micro_batch] for i in range(0, len(indices), micro_batch)]
