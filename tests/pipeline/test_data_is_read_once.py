"""A run parses each line of its data once and tokenises each conversation once, however many stages need them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.tiny_runs import run_all
from noesis.core.project import Project
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
    encode = ChatTokenizer._encode_uncached

    def counted(self: ChatTokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        found[text] += 1
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(ChatTokenizer, "_encode_uncached", counted)
    return found


@pytest.mark.slow
def test_a_run_parses_each_line_and_tokenises_each_conversation_once(
    project: Path, tiny_model: Path, tmp_path: Path, parses: Counter[tuple[str, str]], tokenised: Counter[str]
):
    """The bound is one parse of each line of the sources, and none of the run's own copy, which is in memory already.

    Of each conversation with its answer it is one tokenisation. The two that the parity certificate compares are the
    exception: it tokenises them again, by the merged model's own tokenizer, whose sameness is what it certifies.
    """
    s = run_all(Project(project), tiny_model, tmp_path / "run")
    assert set(parses.values()) == {1}
    assert len(parses) == 124
    held_out = {e.response_revised: e.response_initial for e in s.dataset.held_out}
    answers = [*(e.response_revised for e in s.dataset.train), *held_out, *held_out.values()]
    counts = [sum(n for text, n in tokenised.items() if answer in text) for answer in answers]
    assert min(counts) == 1
    assert sorted(counts)[:-2] == [1] * (len(answers) - 2)
    assert max(counts) <= 2


@pytest.mark.slow
def test_a_run_that_is_opened_again_parses_its_own_copy_once(
    project: Path, tiny_model: Path, tmp_path: Path, parses: Counter[tuple[str, str]], tokenised: Counter[str]
):
    from noesis.pipeline.stages.choose import score_checkpoints

    s = run_all(Project(project), tiny_model, tmp_path / "run")
    for file in (s.run.tribunal / "checkpoints").glob("*.json"):
        file.unlink()
    parses.clear()
    tokenised.clear()
    again = reopen_run(s.run.path)
    assert again.training_set.rows is not None
    score_checkpoints(again, [s.run.adapter().name])
    assert again.training_set.workloads == s.training_set.workloads
    assert again.dataset == s.dataset
    assert set(parses.values()) == {1}
    assert len(parses) == 8 + 13
    conversations = [n for text, n in tokenised.items() if any(e.response_revised in text for e in s.dataset.train)]
    assert conversations == [1] * 8
