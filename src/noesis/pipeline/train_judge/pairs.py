"""What a reward model is trained on: pairs of a better and a worse answer to one prompt, and what gives them away.

A judge learns whatever tells the two apart, the length first of all: the revised answers of the examples are all longer
than the weak ones. So both are cut to one length, at the end of a sentence, and the figures of length and keywords on
the very pairs stand in the judge's record.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from noesis.core.config import Config
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.project import Project
from noesis.dataset.auxiliary import read_pairs
from noesis.dataset.checks.contamination import refuse_known_prompts
from noesis.dataset.load import read_hand_written
from noesis.dataset.schema import Example
from noesis.llm.row_encoder import RowEncoder
from noesis.llm.token_rows import TokenPair
from noesis.tribunal.calibration.baselines import baselines, by_attack, keyword_score, length_score
from noesis.tribunal.planted.plant import planted_pairs
from noesis.tribunal.suite import JudgePair

_SENTENCE = re.compile(r"[^.!?…]*[.!?…]*[\"”’»)]*\s*")
SHORTENED = 0.9  # of the words that should fit, where a conversation was too long


@dataclass(frozen=True)
class AnswerPair:
    """`better` and `worse` answer the same prompt.

    source: examples, pairs or planted; kind: of the planted fault, else the source
    prompt_id: of the prompt: all pairs of one prompt, translations included, are trained on or held out together
    p: probability that `better` is the better one
    """

    name: str
    source: str
    kind: str
    language: str  # ISO 639-1
    prompt_id: str
    messages: tuple[tuple[str, str], ...]
    better: str
    worse: str
    p: float = 1.0

    @property
    def dialogue(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def prompt(self) -> str:
        return self.messages[-1][1]


FittedPair = tuple[AnswerPair, TokenPair]  # as text and as tokens


def collect_pairs(project: Project, config: Config) -> list[AnswerPair]:
    """All pairs of the sources in `judge_training`; none of their prompts is one of the Tribunal or its benchmark.

    Raises:
        UsageError: there are no examples, or no file of pairs.
        DataError: a line is wrong, or a prompt is one of the Tribunal's.
    """
    section = config.training.judge_training
    examples = (*read_hand_written(project, "pt"), *read_hand_written(project, "en"))
    if not examples:
        raise UsageError(
            _(
                "no examples in {training}: a judge of one's own is trained on the project's own",
                training=project.training,
            )
        )
    found: list[AnswerPair] = []
    if "examples" in section.sources:
        found += _from_examples(examples)
    if "pairs" in section.sources:
        found += _from_file(project, config)
    if "planted" in section.sources:
        found += _planted(examples, config.training.seed)
    refuse_known_prompts({pair.name: pair.prompt for pair in found}, project.tribunal)
    return found


def _from_examples(examples: Sequence[Example]) -> Iterator[AnswerPair]:
    for e in examples:
        better = cut(e.response_revised, len(e.response_initial.split()))
        messages = (*((m["role"], m["content"]) for m in e.earlier), ("user", e.prompt))
        yield AnswerPair(e.name, "examples", "examples", e.language, e.id, messages, better, e.response_initial)


def _from_file(project: Project, config: Config) -> Iterator[AnswerPair]:
    name = config.training.dpo.pairs
    if name is None:
        raise UsageError(_("--from pairs: dpo.pairs in training_config.yaml names no file of pairs"))
    for pair in read_pairs(project.root / name, ()):
        words = min(len(pair.chosen.split()), len(pair.rejected.split()))
        messages = (*((m["role"], m["content"]) for m in pair.earlier), ("user", pair.prompt))
        yield AnswerPair(
            pair.name,
            "pairs",
            "pairs",
            pair.language,
            sha256_json(pair.prompt)[:16],
            messages,
            cut(pair.chosen, words),
            cut(pair.rejected, words),
            float(pair.p_chosen),
        )


def _planted(examples: Sequence[Example], seed: int) -> Iterator[AnswerPair]:
    for pair in planted_pairs(examples, seed):
        language = pair.language
        name = f"{pair.source_id} ({language}) {pair.kind}"
        messages = (*pair.turns, ("user", pair.prompt))
        yield AnswerPair(name, "planted", pair.kind, language, pair.source_id, messages, pair.better, pair.worse)


def cut(text: str, words: int) -> str:
    """`text` up to the end of the sentence at which it is nearest to `words` words long; at least one sentence."""
    best, best_count, end, count = 0, 0, 0, 0
    for sentence in _SENTENCE.finditer(text):
        end, count = sentence.end(), count + len(sentence.group().split())
        if not best or abs(count - words) < abs(best_count - words):
            best, best_count = end, count
        if count > words:
            break
    return text[:best].strip()


def thin_out(pairs: Sequence[FittedPair], most: int | None, seed: int) -> list[FittedPair]:
    """The pairs with `most` of the planted ones, as many of each kind and language as possible, drawn by `seed`."""
    if most is None:
        return list(pairs)
    ranks: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for i, (pair, _rows) in enumerate(pairs):
        if pair.source == "planted":
            drawn = hashlib.sha256(f"{seed}/{pair.name}".encode()).hexdigest()
            ranks.setdefault((pair.kind, pair.language), []).append((drawn, i))
    order = sorted((place, drawn, i) for kind in ranks.values() for place, (drawn, i) in enumerate(sorted(kind)))
    dropped = {i for _, _, i in order[most:]}
    return [pair for i, pair in enumerate(pairs) if i not in dropped]


def fit_pairs(pairs: Iterable[AnswerPair], encoder: RowEncoder, max_tokens: int) -> list[FittedPair]:
    """The pairs as token rows of at most `max_tokens`; one that is too long, or loses its fault when cut, is dropped.

    Raises:
        TrainingError: the model's chat template can't be masked.
    """
    found = []
    for pair in pairs:
        better, worse = (_fit(pair, answer, encoder, max_tokens) for answer in (pair.better, pair.worse))
        if (better, worse) != (pair.better, pair.worse):  # cut alike, or the shorter one would be the one that was cut
            words = min(len(better.split()), len(worse.split()))
            better, worse = cut(better, words), cut(worse, words)
        if better.split() == worse.split():
            continue
        rows = [encoder.encode(pair.dialogue, answer, name=pair.name) for answer in (better, worse)]
        if max(len(row.input_ids) for row in rows) <= max_tokens:
            kept_pair = AnswerPair(**(vars(pair) | {"better": better, "worse": worse}))
            found.append((kept_pair, TokenPair(pair.name, rows[0], rows[1], pair.p)))
    return found


def _fit(pair: AnswerPair, answer: str, encoder: RowEncoder, max_tokens: int) -> str:
    """As much of `answer` as fits, up to the end of a sentence; at least one sentence."""
    while (length := len(encoder.encode(pair.dialogue, answer, name=pair.name).input_ids)) > max_tokens:
        shorter = cut(answer, int(len(answer.split()) * SHORTENED * max_tokens / length))
        if shorter == answer:
            break
        answer = shorter
    return answer


def split_by_prompt(names: Sequence[str], share: float, seed: int) -> set[str]:
    """The prompts that are held out: about `share` of them, drawn by `seed`, at least one.

    Raises:
        DataError: there are fewer than two prompts.
    """
    different = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())
    if len(different) < 2:
        raise DataError(_("a judge needs pairs of at least two prompts, of which one is held out"))
    return set(different[: max(1, round(len(different) * share))])


def giveaways(pairs: Sequence[AnswerPair]) -> dict[str, Any]:
    """What length and keywords alone can tell of these pairs, together and by kind, and how many there are."""
    rows = [
        JudgePair(
            id=str(i), attack=pair.kind, language=pair.language, split="dev", prompt=pair.prompt, good=pair.better,
            bad=pair.worse, judges=("veritas", "sophia", "dike"),
        )
        for i, pair in enumerate(pairs)
    ]  # fmt: skip
    longer, words = by_attack(rows, length_score), by_attack(rows, keyword_score)
    return baselines(rows) | {
        "by_kind": {
            kind: {
                "pairs": longer[kind]["pairs"],
                "better_is_longer": longer[kind]["accuracy"],
                "keywords": words[kind]["accuracy"],
            }
            for kind in longer
        }
    }
