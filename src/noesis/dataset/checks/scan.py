"""One pass over JSONL files on all CPU cores: every line is checked, every good example becomes a row of a table.

By default the texts are dropped: 300,000 examples take about 250 MB, however long they are.
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
from noesis.core.device import usable_cpus
from noesis.core.i18n import _
from noesis.core.language import CODES
from noesis.core.text import closing
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.line import Finding, Rules, check_line
from noesis.dataset.schema import Example
from noesis.dataset.source_files import FileChunk, chunk_lines, file_chunks, is_hand_written, total_size

CHUNK_SIZE = 3_000_000  # bytes
PARALLEL_FROM = 12_000_000  # bytes below which starting processes costs more than it saves
MAX_FINDINGS = 20  # of one kind, whose place and message a chunk keeps; the others are counted
LANGUAGES, DIFFICULTIES = CODES, ("easy", "medium", "hard")
STANCES = ("unlabelled", "agree", "disagree", "uncertain", "decline", "explore")
PROMPT_GRAMS, ANSWER_GRAMS = 32, 48  # 3-grams of a text's beginning by which templates are found
COPIED = 0.8  # share of common 3-grams from which a revision only lengthens or shortens
NOT_COLUMNS = ("ids", "categories", "examples")

Column = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")


@dataclass
class Table:
    """The good examples as columns, one row each, in the order of files and lines.

    file, line, offset, length: where the example is (line from 1; offset and length in bytes)
    language, difficulty, stance: index into LANGUAGES, DIFFICULTIES, STANCES
    category: index into `categories`
    values: bit i is set where the constitution's i-th value is applied
    turns: number of earlier messages
    words: (rows, 3) number of words of the initial answer, the critique and the revised answer
    text_bytes: UTF-8 length of what is rendered apart from the system prompt
    prompt_key, answer_key, closing_key: equal for texts that read alike: turns with prompt, revised answer, its last
        sentence (0: it has none)
    prompt_digest, answer_digest: (rows, 63) MinHash
    prompt_grams, answer_grams: (rows, 32 or 48) 3-grams of the beginning
    examples: as parsed, where the scan was to keep them; else empty
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
    examples: tuple[Example, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> Table:
        """A table without rows."""
        return _table([], 0, Rules((), frozenset(), ()))[0]

    def keep(self, rows: Column) -> Table:
        """The table of `rows` (indices or a mask)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in NOT_COLUMNS}
        examples = tuple(self.examples[i] for i in index) if self.examples else ()
        return Table(**columns, ids=[self.ids[i] for i in index], categories=self.categories, examples=examples)


@dataclass
class ChunkResult:
    """What a scan found in one chunk.

    rows: lines that are not blank
    lines: all lines
    findings: (line within the chunk from 1, finding), at most MAX_FINDINGS of a code
    counts: of all findings, by (code, warning)
    """

    chunk: FileChunk
    rows: int
    lines: int
    findings: list[tuple[int, Finding]]
    counts: Counter[tuple[str, bool]]
    table: Table


@dataclass(frozen=True)
class _Parsed:
    """An example and where it is: line within the chunk from 1, offset and length in bytes."""

    example: Example
    line: int
    offset: int
    length: int


def scan(
    files: list[Path], rules: Rules, *, keep_examples: bool = False, processes: int | None = None, what: str = "check"
) -> Iterator[ChunkResult]:
    """Check every line of `files`; the results come in order.

    Args:
        keep_examples: return the parsed examples, for data that fits into memory.
        processes: default: one for each CPU core, a single one for small data.
    """
    number = {file: i for i, file in enumerate(files)}
    work = partial(_scan_chunk, number=number, rules=rules, keep_examples=keep_examples)
    return map_chunks(files, work, what=what, processes=processes)


def map_chunks(
    files: list[Path], work: Callable[[FileChunk], Result], *, what: str, processes: int | None = None
) -> Iterator[Result]:
    """`work` on every chunk of `files`, in parallel unless the data is small; the results come in order."""
    total = total_size(files)
    todo = [chunk for file in files for chunk in file_chunks(file, CHUNK_SIZE)]
    processes = processes or (usable_cpus() if total >= PARALLEL_FROM else 1)
    with Progress(what, max(total // 1_000_000, 1), "MB", every_s=5.0) as progress:
        read = 0
        for chunk, result in zip(todo, _in_order(todo, work, processes), strict=True):
            read += chunk.end - chunk.start
            progress.advance(read // 1_000_000 - progress.done)
            yield result


def _in_order(todo: list[FileChunk], work: Callable[[FileChunk], Result], processes: int) -> Iterator[Result]:
    if processes == 1 or len(todo) < 2:
        yield from map(work, todo)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for chunk in todo:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) > 2 * processes:  # finished chunks must not pile up in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _scan_chunk(chunk: FileChunk, number: dict[Path, int], rules: Rules, keep_examples: bool) -> ChunkResult:
    """Check one chunk. Runs in a process of its own for large data."""
    findings: list[tuple[int, Finding]] = []
    counts: Counter[tuple[str, bool]] = Counter()
    parsed: list[_Parsed] = []
    rows = last = 0

    def note(line: int, finding: Finding) -> None:
        counts[finding.code, finding.warning] += 1
        if counts[finding.code, finding.warning] <= MAX_FINDINGS:
            findings.append((line, finding))

    hand_written = is_hand_written(chunk.file)
    for line in chunk_lines(chunk):
        rows, last = rows + 1, line.number
        example, found = check_line(line.data, rules, hand_written=hand_written)
        for finding in found:
            note(line.number, finding)
        if example is not None:
            parsed.append(_Parsed(example, line.number, line.offset, len(line.data)))
    table, copied = _table(parsed, number[chunk.file], rules)
    if keep_examples:
        table.examples = tuple(p.example for p in parsed)
    message = _("response_revised only lengthens or shortens response_initial: most of the words are the same")
    for i in np.flatnonzero(copied):
        note(parsed[i].line, Finding("length-only", message, warning=True))
    return ChunkResult(chunk, rows, last, findings, counts, table)


def _table(parsed: list[_Parsed], file: int, rules: Rules) -> tuple[Table, Column]:
    """The columns of the examples, and for each example whether its revision only changes the length."""
    examples = [p.example for p in parsed]
    prompts = [" ".join([*(turn.content for turn in e.turns), e.prompt]) for e in examples]
    # Generated sets repeat a few answers thousands of times: each is examined once in a chunk.
    replies = [(e.response_initial, e.critique, e.response_revised) for e in examples]
    distinct = {reply: i for i, reply in enumerate(dict.fromkeys(replies))}
    which = np.array([distinct[reply] for reply in replies], np.int64)
    initial, critique, answer = (fingerprint([reply[i] for reply in distinct]) for i in range(3))
    endings = [closing(reply[2]) for reply in distinct]
    closings = np.where([bool(ending) for ending in endings], fingerprint(endings).key, np.uint64(0)).astype(np.uint64)
    bytes_of_answers = np.array([len(reply[2].encode()) for reply in distinct], np.int32)
    prompt = fingerprint(prompts)
    categories = sorted({e.category for e in examples})
    category = {name: i for i, name in enumerate(categories)}
    bit = {value: 1 << i for i, value in enumerate(rules.values)}
    table = Table(
        file=np.full(len(examples), file, np.int32),
        line=np.array([p.line for p in parsed], np.int64),
        offset=np.array([p.offset for p in parsed], np.int64),
        length=np.array([p.length for p in parsed], np.int32),
        language=np.array([LANGUAGES.index(e.language) for e in examples], np.uint8),
        category=np.array([category[e.category] for e in examples], np.int32),
        difficulty=np.array([DIFFICULTIES.index(e.difficulty) for e in examples], np.uint8),
        stance=np.array([STANCES.index(e.stance or "unlabelled") for e in examples], np.uint8),
        values=np.array([sum({bit[v] for v in e.values_applied}) for e in examples], np.uint64),
        turns=np.array([len(e.turns) for e in examples], np.int32),
        words=np.stack([initial.words, critique.words, answer.words], axis=1)[which].astype(np.int32),
        text_bytes=np.array([len(p.encode()) for p in prompts], np.int32) + bytes_of_answers[which],
        prompt_key=prompt.key,
        answer_key=answer.key[which],
        closing_key=closings[which],
        prompt_digest=prompt.minhash(),
        answer_digest=answer.minhash()[which],
        prompt_grams=prompt.first_grams(PROMPT_GRAMS),
        answer_grams=answer.first_grams(ANSWER_GRAMS)[which],
        ids=[e.id for e in examples],
        categories=categories,
    )
    return table, initial.overlap(answer)[which] >= COPIED


def join(tables: list[Table]) -> Table:
    """One table of many; categories are renumbered."""
    names = sorted({name for table in tables for name in table.categories})
    number = {name: i for i, name in enumerate(names)}
    for table in tables:
        if len(table):
            table.category = np.array([number[name] for name in table.categories], np.int32)[table.category]
    columns = {
        f.name: np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(Table) if f.name not in NOT_COLUMNS
    }
    return Table(
        **columns,
        ids=[i for t in tables for i in t.ids],
        categories=names,
        examples=tuple(e for t in tables for e in t.examples),
    )
