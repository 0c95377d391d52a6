"""Texts on which a regular expression that backtracks, or begins again at every character, takes quadratic time.

They are made from the pattern itself: whatever leads into a repetition is written again and again, or once with what is
repeated again and again, and the text never ends in the way that the pattern waits for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZES = (64, 256, 1024, 4096, 16384)  # characters
NOTICEABLE_S = 0.008
MANY = 30  # repetitions that a bound may allow without being tried here: they cost a constant factor
FOURFOLD = 9.0  # four times the text may take at most this many times as long: 4 is linear, 16 quadratic
GENERIC = (" ", "\n", "\t", "a", "A", "1", "<", "[", "{", "(", "-", ".", "_", "@", "a ", "a-", "1.", "a@", "<<", "é")


def attacks(pattern: str, flags: int) -> Iterator[str]:
    """Pieces to repeat, each with what may stand before it."""
    tree = re._parser.parse(pattern, flags)
    yield from GENERIC
    for sequence in _distinct(tree):
        for end, item in enumerate(sequence, 1):
            if _repeats(item):
                yield "".join(_example(item) for item in sequence[: end - 1])
                yield "".join(_example(item) for item in sequence[:end])


def starts(pattern: str, flags: int) -> Iterator[tuple[str, str]]:
    """(beginning, what is repeated after it), for each repetition of the pattern."""
    for sequence in _distinct(re._parser.parse(pattern, flags)):
        for at, item in enumerate(sequence):
            if _repeats(item):
                before = "".join(_example(other) for other in sequence[:at])
                for piece in {"".join(_example(i) for i in item[1][2]), *GENERIC[:8]}:
                    yield before, piece


def quadratic(pattern: re.Pattern[str]) -> str | None:
    """A text on which the search takes far more than four times as long when it is four times as long; None is good."""
    texts = [("", piece) for piece in attacks(pattern.pattern, pattern.flags)]
    for before, piece in dict.fromkeys([*texts, *starts(pattern.pattern, pattern.flags)]):
        if not piece:
            continue  # edges and looks around, which match no character
        if (times := _growth(pattern, before, piece)) > 1:
            return f"{before!r} + {piece!r} * n: {times:.0f} times as long for four times the text"
    return None


def growth(work: Callable[[str], object], make: Callable[[int], str], sizes: tuple[int, ...] = SIZES) -> float:
    """How many times as long `work` takes on four times the text, once it takes a noticeable time."""
    last = None
    for size in sizes:
        text = make(size)
        seconds = _seconds(work, text)
        if last is not None and seconds > NOTICEABLE_S:
            ratio = seconds / last
            if ratio > FOURFOLD:  # a busy machine may have disturbed one of them: measure both again
                ratio = min(ratio, _seconds(work, text, times=3) / max(_seconds(work, make(size // 4), times=3), 1e-7))
            if ratio > FOURFOLD:
                return ratio
        last = max(seconds, 1e-7)
    return 1.0


def _growth(pattern: re.Pattern[str], before: str, piece: str) -> float:
    def search(text: str) -> None:
        for _ in pattern.finditer(text):
            pass
        pattern.fullmatch(text)

    return growth(search, lambda size: before + piece * (size // len(piece) + 1) + "\x00")


def _seconds(work: Callable[[str], object], text: str, times: int = 1) -> float:
    """Processor time, which other processes hardly change; the least of several."""
    found = []
    for _ in range(times):
        start = time.thread_time()
        work(text)
        found.append(time.thread_time() - start)
    return min(found)


def _distinct(tree: Any) -> list[list[Any]]:
    return [sequence for sequence in _sequences(tree) if any(_repeats(item) for item in sequence)]


def _repeats(item: Any) -> bool:
    """Whether the item may match very much."""
    return str(item[0]) in ("MAX_REPEAT", "MIN_REPEAT") and item[1][1] > MANY


def _sequences(tree: Any) -> Iterator[list[Any]]:
    """Every way through the alternatives of the whole pattern, and the sequences inside its groups and repetitions."""
    items = list(tree)
    yield items
    for at, (op, value) in enumerate(items):
        if str(op) == "BRANCH":
            for branch in value[1]:
                for inside in _sequences(branch):
                    yield [*items[:at], *inside, *items[at + 1 :]]
        elif str(op) == "SUBPATTERN":
            for inside in _sequences(value[3]):
                yield [*items[:at], *inside, *items[at + 1 :]]
        elif str(op) in ("MAX_REPEAT", "MIN_REPEAT"):
            for inside in _sequences(value[2]):
                yield [*items[:at], *inside]


def _example(item: Any) -> str:
    """A short text that the item matches."""
    op, value = str(item[0]), item[1]
    if op == "LITERAL":
        return chr(value)
    if op == "NOT_LITERAL":
        return "a" if value != ord("a") else "b"
    if op == "ANY":
        return "a"
    if op == "IN":
        return _of_class(value)
    if op == "BRANCH":
        return "".join(_example(i) for i in value[1][0])
    if op == "SUBPATTERN":
        return "".join(_example(i) for i in value[3])
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return "".join(_example(i) for i in value[2]) * max(value[0], 1)
    return ""  # what matches no character: edges, looks around


def _of_class(items: Any) -> str:
    names = {"CATEGORY_DIGIT": "1", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " ", "CATEGORY_NOT_SPACE": "a",
             "CATEGORY_NOT_WORD": " ", "CATEGORY_NOT_DIGIT": "a"}  # fmt: skip
    if str(items[0][0]) == "NEGATE":
        excluded = {chr(v) for op, v in items[1:] if str(op) == "LITERAL"}
        return next(c for c in "a <[{1-" if c not in excluded)
    op, value = str(items[0][0]), items[0][1]
    return chr(value) if op == "LITERAL" else chr(value[0]) if op == "RANGE" else names.get(str(value), "a")
