"""A run parses each line of its data once and tokenises each conversation once, however many stages need them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.tiny_runs import run_all
from noesis.core.project import Project
from noesis.dataset.checks import length
from noesis.dataset.encode import answer_rows
from noesis.llm.tokenizer import ChatTokenizer
from noesis.pipeline.session import reopen_run


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each example was parsed, by id and language, wherever its line stood."""
    found: Counter[tuple[str, str]] = Counter()
    loads = json.loads

    def counted(*args: object, **options: object) -> object:
        value = loads(*args, **options)
        if isinstance(value, dict) and "response_revised" in value:
            found[value["id"], value["language"]] += 1
        return value

    monkeypatch.setattr(json, "loads", counted)
    return found


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text was tokenised."""
    found: Counter[str] = Counter()
    length._tokenizer.cache_clear()  # a tokenizer that an earlier test opened keeps the method it was made with
    encode = ChatTokenizer._encode_uncached

    def counted(self: ChatTokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        found[text] += 1
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(ChatTokenizer, "_encode_uncached", counted)
    return found


@pytest.mark.slow
def test_a_run_parses_each_line_and_tokenises_each_conversation_once(
    small_project: Project,
    tiny_model: Path,
    tmp_path: Path,
    quiet_cache: Path,
    parses: Counter[tuple[str, str]],
    tokenised: Counter[str],
):
    """The bound is one parse of each line of the sources, and none of the run's own copy, which is in memory already.

    Of each conversation with its answer it is one tokenisation. The two that the parity certificate compares are the
    exception: it tokenises them again, by the merged model's own tokenizer, whose sameness is what it certifies.
    A run that is opened again parses its own copy once, and again tokenises each conversation once.
    """
    s = run_all(small_project, tiny_model, tmp_path / "run")
    assert set(parses.values()) == {1}
    assert len(parses) == 24
    held_out = {e.response_revised: e.response_initial for e in s.dataset.held_out}
    answers = [*(e.response_revised for e in s.dataset.train), *held_out, *held_out.values()]
    counts = [sum(n for text, n in tokenised.items() if answer in text) for answer in answers]
    assert sorted(counts)[:-2] == [1] * (len(answers) - 2)

    parses.clear()
    tokenised.clear()
    again = reopen_run(s.run.path)
    assert again.training_set.workloads == s.training_set.workloads
    for which in ("revised", "initial"):  # as the choice of the checkpoint does
        answer_rows(again.dataset.held_out, which, again.encoder, again.constitution)
    assert again.dataset == s.dataset
    assert set(parses.values()) == {1}
    assert len(parses) == len(s.dataset.train) + len(s.dataset.held_out)
    counts = [sum(n for text, n in tokenised.items() if answer in text) for answer in answers]
    assert counts == [1] * len(answers)
