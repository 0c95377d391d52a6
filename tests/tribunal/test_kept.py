"""The small tasks that show what training broke: their keys, their figures, and that nobody trains on them."""

from __future__ import annotations

import json
import re
import runpy
from datetime import date, datetime
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.errors import DataError
from noesis.core.jsonl import jsonl_files, read_objects
from noesis.core.text import normalised
from noesis.tribunal.kept.figures import KeptFigures, KeptGroup, kept_figures
from noesis.tribunal.kept.form import form_of
from noesis.tribunal.kept.items import KeptItem, items_digest, read_kept_items, subset
from noesis.tribunal.kept.measure import Outcome, is_right

TRIBUNAL = ROOT / "data" / "tribunal"
ITEMS = read_kept_items(TRIBUNAL)


@pytest.mark.parametrize("language", ["pt", "en"])
def test_there_are_200_items_a_language_with_every_kind_in_four_tiers(language: str):
    own = [item for item in ITEMS if item.language == language]
    assert len(own) >= 200
    kinds = {item.kind for item in own}
    assert {"arithmetic", "dates", "logic", "strings", "facts", "words", "format", "language"} < kinds
    assert {(i.kind, i.tier) for i in own} == {(kind, tier) for kind in kinds for tier in (1, 2, 3, 4)}
    assert {(i.kind, i.decline) for i in own if i.decline is not None} == {("harmful", True), ("harmless", False)}


def test_the_computed_items_are_what_the_generators_write():
    make = runpy.run_path(str(ROOT / "docs" / "make_kept_items.py"))["lines"]
    for language in ("en", "pt"):
        assert (TRIBUNAL / "kept" / f"computed.{language}.jsonl").read_text(encoding="utf-8") == make(language)


def test_keys_of_sums_and_days_by_other_means():
    """The keys against Python's own arithmetic and calendar, read from the prompts' words."""
    found = [(i, re.search(r"(?:is|é) ([\d+×\- ]+)\?", i.prompt)) for i in ITEMS if i.kind == "arithmetic"]
    sums = [(i, match[1].replace("×", "*")) for i, match in found if match]
    for item, expression in sums:
        assert str(eval(expression, {})) == item.answer, item.id
    between = [i for i in ITEMS if i.id.startswith("en_dates_4")]
    for item in between:
        first, last = re.findall(r"([A-Z]\w+ \d+), (\d+)", item.prompt)
        assert (_day(*last) - _day(*first)).days == int(item.answer or "")
    assert len(sums) > 40
    assert len(between) == 6


def _day(month_day: str, year: str) -> date:
    return datetime.strptime(f"{month_day} {year}", "%B %d %Y").date()


def test_no_prompt_stands_in_data_that_trains_or_judges():
    others = {
        normalised(str(row["prompt"]))
        for folder in (ROOT / "data" / "training", TRIBUNAL / "prompts", TRIBUNAL / "judge_bench")
        for file in jsonl_files(folder, below=True)
        for row in read_objects(file)
        if "prompt" in row
    }
    assert len(others) > 300
    assert [item.id for item in ITEMS if normalised(item.prompt) in others] == []
    assert len({item.prompt for item in ITEMS}) == len(ITEMS)


def test_a_subset_is_spread_over_languages_kinds_and_tiers():
    part = subset(ITEMS, 72)
    assert len(part) == len({item.id for item in part}) == 72
    for key in ("language", "kind", "tier"):
        assert {getattr(i, key) for i in part} == {getattr(i, key) for i in ITEMS}
    assert items_digest(part) != items_digest(ITEMS)


CHOICE = {"id": "a", "language": "en", "kind": "facts", "tier": 1, "prompt": "Which?", "answer": "x"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (CHOICE, "needs distractors"),
        (CHOICE | {"distractors": ["x"]}, "must all differ"),
        (CHOICE | {"distractors": ["y"], "decline": True}, "one of"),
        (CHOICE | {"distractors": ["y"], "tier": 5}, "tier"),
        ({"id": "a", "language": "en", "kind": "facts", "tier": 1, "prompt": "Which?"}, "one of"),
    ],
)
def test_an_item_without_one_key_is_refused_by_its_place(tmp_path: Path, row: dict, why: str):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "own.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"own\.jsonl:1.*{why}"):
        read_kept_items(tmp_path)


def test_no_folder_is_no_items(tmp_path: Path):
    assert read_kept_items(tmp_path) == []


def item(**key: object) -> KeptItem:
    return KeptItem.model_validate({"id": "i", "language": "en", "kind": "k", "tier": 1, "prompt": "Say it."} | key)


def test_what_is_right():
    choice = item(answer="Paris", distractors=("Rome", "Bonn"))
    assert is_right(choice, Outcome(scores=(-1.0, -2.0, -3.0)))
    assert not is_right(choice, Outcome(scores=(-2.0, -2.0, -3.0)))  # a tie is no preference
    assert not is_right(choice, Outcome(scores=(-1e9, -1e9, -1e9)))  # what a broken model leaves
    word = item(check=({"type": "max_words", "count": 1},))
    assert is_right(word, Outcome(said="yes"))
    assert not is_right(word, Outcome(said=""))
    harmful, benign = item(decline=True), item(decline=False)
    no = Outcome(said="I'm sorry, but I can't help with that.")
    assert (is_right(harmful, no), is_right(benign, no)) == (True, False)
    assert (is_right(harmful, Outcome(said="Sure.")), is_right(benign, Outcome(said="Sure."))) == (False, True)
    assert not is_right(benign, Outcome())  # silence answers nothing


def test_gained_kept_and_lost_by_group():
    items = [item(id=f"i{n}", kind="facts" if n < 6 else "words", answer="x", distractors=("y",)) for n in range(10)]
    base = [True] * 6 + [False] * 4
    tuned = [True, True, False, False, False, False, True, False, False, False]
    found = kept_figures("0", items, base, tuned, drift=[(1.0, 4), (0.0, 0), (2.0, 6)])
    assert (found.all.kept, found.all.lost, found.all.gained) == (2, 4, 1)
    assert found.all.p == 0.375  # exact: 2 × (1 + 5) / 2⁵
    assert found.all.lost_95 == (0.3, 0.9032)  # Wilson of 4 in 6, from statsmodels
    assert found.drift == 0.3
    assert (found.by_kind["facts"].lost, found.by_kind["words"].gained) == (4, 1)
    assert found.by_kind["facts"].caution == ""
    assert "nothing could be lost" in found.by_kind["words"].caution
    assert KeptFigures.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_base_that_guesses_is_said_to():
    guess = KeptGroup.of([True, False, False] * 4, [False] * 12, [1 / 3] * 12)
    assert "guessing" in guess.caution
    assert KeptGroup.of([True] * 12, [False] * 12, [1 / 3] * 12).caution == ""


def test_repetition_and_length():
    assert form_of([]).words == 0
    assert form_of(["one two three four five"]).repeated == 0
    circle = form_of(["we will see " * 10])
    assert circle.words == 30
    assert circle.repeated > 0.8
