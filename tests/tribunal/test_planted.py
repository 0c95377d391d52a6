"""Faults planted by code: each rule changes what it says it changes, only where it applies, and the same way every time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.jsonl import jsonl_files, read_models
from noesis.dataset.schema import Example
from noesis.tribunal.calibration.baselines import keyword_score
from noesis.tribunal.planted.draft import Draft
from noesis.tribunal.planted.material import Material
from noesis.tribunal.planted.plant import KINDS, PlantedPair, plant, planted_pairs
from noesis.tribunal.rubric import JUDGES

TRAINING = ROOT / "data" / "training"


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    folders = [TRAINING / "philosophical", TRAINING / "philosophical_en"]
    return [example for folder in folders for file in jsonl_files(folder) for _, example in read_models(file, Example)]


@pytest.fixture(scope="module")
def pairs(examples: list[Example]) -> list[PlantedPair]:
    return list(planted_pairs(examples, seed=7))


def words(text: str) -> int:
    return len(text.split())


# --- the project's own answers


def test_every_kind_in_both_languages(pairs: list[PlantedPair]):
    assert {(pair.kind, pair.language) for pair in pairs} == {(kind, lang) for kind in KINDS for lang in ("pt", "en")}
    assert all(pair.worse != pair.better for pair in pairs)


def test_the_same_for_the_same_seed(examples: list[Example]):
    few = examples[::20]
    whole = list(planted_pairs(few, seed=7))
    assert list(planted_pairs(few, seed=7)) == whole
    assert list(planted_pairs(few, seed=8)) != whole
    some = ("shuffled", "number_changed")
    assert set(planted_pairs(few, seed=7, kinds=some)) == {pair for pair in whole if pair.kind in some}


def test_neither_length_nor_keywords_give_them_away(pairs: list[PlantedPair]):
    def right(of: list[PlantedPair], longer: bool) -> float:
        return sum(
            (words(p.better) > words(p.worse)) if longer else (words(p.better) < words(p.worse)) for p in of
        ) / len(of)

    for kind in set(KINDS) - {"truncated"}:  # which lacks words, since that is the fault
        of = [pair for pair in pairs if pair.kind == kind]
        assert max(right(of, True), right(of, False)) < 0.62, kind
    assert max(right(pairs, True), right(pairs, False)) < 0.5
    keywords = [
        sum(keyword_score(p.better, judge) for judge in JUDGES)
        > sum(keyword_score(p.worse, judge) for judge in JUDGES) + 1e-9
        for p in pairs[::7]
    ]
    assert sum(keywords) / len(keywords) < 0.5


def test_most_of_the_answer_stays(pairs: list[PlantedPair]):
    for pair in pairs:
        if pair.kind not in ("shuffled", "truncated"):
            kept = set(pair.better.split()) & set(pair.worse.split())
            assert len(kept) > 0.4 * len(set(pair.better.split())), (pair.kind, pair.source_id)


def test_no_refusal_where_the_answer_declines(examples: list[Example], pairs: list[PlantedPair]):
    declining = {example.id for example in examples if example.stance == "decline"}
    assert declining
    assert not [pair for pair in pairs if pair.kind == "refused" and pair.source_id in declining]


# --- single rules

ANSWER = """Não decorre: o argumento é inválido. A primeira frase vale para todos os membros, e a segunda fala de um só.

A conta mostra isso. Doze vezes 30 dão 360, e em 1998 havia 40 sócios. Talvez o secretário tenha se enganado; não sei se foi de propósito.

Pergunte a ele de onde saiu o número. Provavelmente foi da ata anterior, que contava os visitantes como sócios da casa."""


def planted(
    kind: str, answer: str = ANSWER, language: str = "pt", material: Material | None = None, seed: int = 1
) -> str | None:
    return plant(answer, language, kind, random.Random(seed), material)


def test_a_claim_is_negated_and_nothing_else():
    seen = {planted("negated_claim", "A porta é azul. O muro não é alto.", seed=seed) for seed in range(20)}
    assert seen == {"A porta não é azul. O muro não é alto.", "A porta é azul. O muro é alto."}


def test_the_conclusion_is_reversed():
    found = planted("reversed_conclusion", "No, it is wrong to wait. Rain comes first.", "en")
    assert found == "No, it is right to wait. Rain comes first."


def test_questions_and_quotations_are_left_alone():
    assert planted("negated_claim", 'Ele disse "isto é meu". Isso é certo?') is None
    assert planted("opposite_word", "Is it always better?", "en") is None


def test_a_result_slips_by_one_digit():
    for seed in range(10):
        found = planted("arithmetic_slip", seed=seed)
        assert found is not None
        assert words(found) == words(ANSWER)
        assert "Doze vezes 30 dão 360" not in found


def test_certainty_needs_two_hedges():
    found = planted("certainty_inflated")
    assert found is not None
    assert "sei que foi de propósito" in found
    assert "Seguramente foi da ata" in found
    assert planted("certainty_inflated", "Provavelmente foi da ata.") is None


def test_a_paragraph_from_elsewhere():
    assert planted("off_topic") is None
    other = "\n\n".join([" ".join(["palavra"] * 24) + "."] * 3)
    found = planted("off_topic", material=Material(other=other))
    assert found is not None
    assert found.count("palavra palavra") == 12
    assert planted("language_switched", material=Material(parallel="One paragraph only.")) is None


def test_cut_in_the_middle_of_a_sentence():
    found = planted("truncated")
    assert found is not None
    assert ANSWER.startswith(found)
    assert found[-1] not in ".!?"


def test_short_answers_stay_whole():
    for kind in KINDS:
        assert planted(kind, "Sim.") is None, kind


def test_unknown_kinds_and_languages():
    with pytest.raises(KeyError):
        planted("another_kind")
    with pytest.raises(KeyError):
        planted("hedge_flood", language="fr")


def test_lists_are_not_broken_up():
    answer = (
        "Faça assim:\n1. abra a porta\n2. saia\n\nDepois conte quantos vieram e quantos ficaram em casa naquele dia."
    )
    assert str(Draft.of(answer)) == answer
    assert planted("shuffled", answer) is None


def test_no_planted_pair_has_a_prompt_of_the_benchmark(pairs: list[PlantedPair]):
    from noesis.tribunal.suite import read_benchmark

    benchmark, _ = read_benchmark(Path(ROOT) / "data" / "tribunal", "all")
    assert not {pair.prompt for pair in pairs} & {pair.prompt for pair in benchmark}
