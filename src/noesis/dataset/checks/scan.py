"""One pass over JSONL files, in all processors: every line checked, every good record reduced to a row of numbers.

The texts are not kept: 300,000 records take about 250 MB here, whatever they say.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from noesis.core.console import Progress
from noesis.core.device import usable_threads
from noesis.core.text import closing
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.line import Finding, Rules, check_line
from noesis.dataset.jsonl import FileChunk, file_chunks, is_hand_written, lines, total_size

PIECE = 3_000_000  # bytes of a file that are checked at a time
PARALLEL_FROM = 12_000_000  # bytes below which starting processes costs more than it saves
KEPT = 20  # findings of one kind of which a piece keeps place and words; of the others it keeps the number
LANGUAGES, DIFFICULTIES = ("pt", "en"), ("easy", "medium", "hard")
STANCES = ("unlabelled", "agree", "disagree", "uncertain", "decline", "explore")
PROMPT_GRAMS, ANSWER_GRAMS = 32, 48  # 3-grams of a text's beginning by which templates are found
COPIED = 0.8  # share of common 3-grams from which a revision only lengthens or shortens

Column = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")


@dataclass
class Table:
    """The good records as columns, one row each, in the order of files and lines.

    file, line, offset, length: where the record stands (line from 1; offset and length in bytes)
    language, difficulty, stance: index into LANGUAGES, DIFFICULTIES, STANCES
    category: index into `categories`
    values: bit i set where the constitution's i-th value is applied
    turns: earlier messages
    words: (rows, 3) of the initial answer, the critique and the revised answer
    text_bytes: UTF-8 length of what is rendered besides the system prompt
    prompt_key, answer_key, closing_key: equal for texts that read alike; of turns with prompt, of the revised answer, of its last sentence (0: none)
    prompt_digest, answer_digest: (rows, 63) MinHash
    prompt_grams, answer_grams: (rows, 32 or 48) 3-grams of the beginning
    """

    file: Column
    line: Column
    offset: Column
    length: Column
    language: Column
    category: Column
    difficulty: Column
    stance: Column
    values: Column
    turns: Column
    words: Column
    text_bytes: Column
    prompt_key: Column
    answer_key: Column
    closing_key: Column
    prompt_digest: Column
    answer_digest: Column
    prompt_grams: Column
    answer_grams: Column
    ids: list[str]
    categories: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> Table:
        """A table without rows."""
        return _table([], 0, Rules((), frozenset(), ()))[0]

    def keep(self, rows: Column) -> Table:
        """The table of `rows` (indices or a mask)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in ("ids", "categories")}
        return Table(**columns, ids=[self.ids[i] for i in index], categories=self.categories)


@dataclass
class ChunkResult:
    """What one piece came to."""

    piece: FileChunk
    rows: int  # lines that are not blank
    lines: int
    findings: list[tuple[int, Finding]]  # (line within the piece from 0, finding), at most KEPT of a code
    counts: Counter[tuple[str, bool]]  # of all findings, by (code, warning)
    table: Table


def scan(
    files: list[Path], rules: Rules, *, processes: int | None = None, what: str = "check"
) -> Iterator[ChunkResult]:
    """Check every line of `files`; the parts come in order.

    Args:
        processes: at a time; default: as many as the processor runs, one for small data.
    """
    number = {file: i for i, file in enumerate(files)}
    return map_chunks(files, partial(_scan_piece, number=number, rules=rules), what=what, processes=processes)


def map_chunks(
    files: list[Path], work: Callable[[FileChunk], Result], *, what: str, processes: int | None = None
) -> Iterator[Result]:
    """`work` on every piece of `files`, in as many processes as the processor runs (one for small data); the results come in order."""
    total = total_size(files)
    todo = [piece for file in files for piece in file_chunks(file, PIECE)]
    processes = processes or (usable_threads() if total >= PARALLEL_FROM else 1)
    with Progress(what, max(total // 1_000_000, 1), "MB", every_s=5.0) as progress:
        read = 0
        for piece, result in zip(todo, _in_order(todo, work, processes), strict=True):
            read += piece.end - piece.start
            progress.advance(read // 1_000_000 - progress.done)
            yield result


def _in_order(todo: list[FileChunk], work: Callable[[FileChunk], Result], processes: int) -> Iterator[Result]:
    if processes == 1 or len(todo) < 2:
        yield from map(work, todo)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for piece in todo:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > 2 * processes:  # a few ahead: finished parts must not pile up in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _scan_piece(piece: FileChunk, number: dict[Path, int], rules: Rules) -> ChunkResult:
    """Check one piece. Runs in a process of its own for large data."""
    findings: list[tuple[int, Finding]] = []
    counts: Counter[tuple[str, bool]] = Counter()
    records: list[tuple[int, int, int, dict[str, Any]]] = []  # line, offset, length, record
    rows = last = 0

    def note(line: int, finding: Finding) -> None:
        counts[finding.code, finding.warning] += 1
        if counts[finding.code, finding.warning] <= KEPT:
            findings.append((line, finding))

    hand_written = is_hand_written(piece.file)
    for index, offset, line in lines(piece):
        rows, last = rows + 1, index
        record, found = check_line(line, rules, hand_written=hand_written)
        for finding in found:
            note(index, finding)
        if record is not None:
            records.append((index, offset, len(line), record))
    table, copied = _table(records, number[piece.file], rules)
    for i in np.flatnonzero(copied):
        note(
            records[i][0],
            Finding(
                "length-only",
                "response_revised only lengthens or shortens response_initial: most of the words are the same",
                warning=True,
            ),
        )
    return ChunkResult(piece, rows, last + 1, findings, counts, table)


def _table(records: list[tuple[int, int, int, dict[str, Any]]], file: int, rules: Rules) -> tuple[Table, Column]:
    """The records' columns, and for each record whether its revision only changes the length."""
    made = [record for *_, record in records]
    prompts = [" ".join([*(turn["content"] for turn in r.get("turns") or ()), r["prompt"]]) for r in made]
    # Generated sets repeat a few answers thousands of times: each is looked at once a piece.
    replies = [(r["response_initial"], r["critique"], r["response_revised"]) for r in made]
    distinct = {reply: i for i, reply in enumerate(dict.fromkeys(replies))}
    which = np.array([distinct[reply] for reply in replies], np.int64)
    initial, critique, answer = (fingerprint([reply[i] for reply in distinct]) for i in range(3))
    endings = [closing(reply[2]) for reply in distinct]
    closings = np.where([bool(ending) for ending in endings], fingerprint(endings).key, np.uint64(0)).astype(np.uint64)
    bytes_of_answers = np.array([len(reply[2].encode()) for reply in distinct], np.int32)
    prompt = fingerprint(prompts)
    categories = sorted({r["category"] for r in made})
    category = {name: i for i, name in enumerate(categories)}
    bit = {value: 1 << i for i, value in enumerate(rules.values)}
    table = Table(
        file=np.full(len(made), file, np.int32),
        line=np.array([line for line, *_ in records], np.int64),
        offset=np.array([offset for _, offset, *_ in records], np.int64),
        length=np.array([length for _, _, length, _ in records], np.int32),
        language=np.array([LANGUAGES.index(r.get("language", "pt")) for r in made], np.uint8),
        category=np.array([category[r["category"]] for r in made], np.int32),
        difficulty=np.array([DIFFICULTIES.index(r["difficulty"]) for r in made], np.uint8),
        stance=np.array([STANCES.index(r.get("stance") or "unlabelled") for r in made], np.uint8),
        values=np.array([sum({bit[v] for v in r["values_applied"]}) for r in made], np.uint64),
        turns=np.array([len(r.get("turns") or ()) for r in made], np.int32),
        words=np.stack([initial.words, critique.words, answer.words], axis=1)[which].astype(np.int32),
        text_bytes=np.array([len(p.encode()) for p in prompts], np.int32) + bytes_of_answers[which],
        prompt_key=prompt.key,
        answer_key=answer.key[which],
        closing_key=closings[which],
        prompt_digest=prompt.minhash(),
        answer_digest=answer.minhash()[which],
        prompt_grams=prompt.first_grams(PROMPT_GRAMS),
        answer_grams=answer.first_grams(ANSWER_GRAMS)[which],
        ids=[r["id"] for r in made],
        categories=categories,
    )
    return table, initial.overlap(answer)[which] >= COPIED


def join(tables: list[Table]) -> Table:
    """One table of many, categories numbered anew."""
    names = sorted({name for table in tables for name in table.categories})
    number = {name: i for i, name in enumerate(names)}
    for table in tables:
        if len(table):
            table.category = np.array([number[name] for name in table.categories], np.int32)[table.category]
    columns = {
        f.name: np.concatenate([getattr(t, f.name) for t in tables])
        for f in fields(Table)
        if f.name not in ("ids", "categories")
    }
    return Table(**columns, ids=[i for t in tables for i in t.ids], categories=names)
