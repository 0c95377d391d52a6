"""The project's own judge benchmark: its counts, its balance, and that no question of it is asked anywhere else."""

from __future__ import annotations

import json
from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from helpers.project import ROOT
from noesis.core.jsonl import jsonl_files, read_models
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import NEAR
from noesis.dataset.schema import Example
from noesis.tribunal.calibration.baselines import baselines
from noesis.tribunal.calibration_store import Calibration, grown_since
from noesis.tribunal.suite import read_benchmark, read_suite

TRIBUNAL, TRAINING = ROOT / "data" / "tribunal", ROOT / "data" / "training"
PAIRS, TWINS = read_benchmark(TRIBUNAL, "all")
LATER = [pair for pair in PAIRS if pair.since]
NEW_ATTACKS = ("arithmetic_slip", "false_balance", "judge_flattery", "reversed_conclusion")


def examples() -> list[Example]:
    files = [file for folder in ("philosophical", "philosophical_en") for file in jsonl_files(TRAINING / folder)]
    return [example for file in files for _, example in read_models(file, Example)]


def test_counts():
    halves = Counter(pair.split for pair in PAIRS)
    assert (halves["locked"], halves["dev"]) == (202, 102)
    by_attack = Counter((pair.attack, pair.split) for pair in PAIRS)
    assert len({attack for attack, _ in by_attack}) == 16
    assert min(by_attack[attack, "locked"] for attack, _ in by_attack) >= 12
    assert min(by_attack[attack, "dev"] for attack in NEW_ATTACKS) >= 6
    for split in halves:
        portuguese = sum(pair.language == "pt" for pair in PAIRS if pair.split == split)
        assert abs(portuguese / halves[split] - 0.5) < 0.02


def test_neither_length_nor_keywords_tell_the_later_pairs_apart():
    longer = sum(len(pair.bad.split()) > len(pair.good.split()) for pair in LATER)
    shorter = sum(len(pair.bad.split()) < len(pair.good.split()) for pair in LATER)
    assert 0.8 < longer / shorter < 1.25
    for split in ("dev", "locked"):
        found = baselines([pair for pair in LATER if pair.split == split])
        assert found["keywords"]["accuracy"] < 0.6
        assert found["length"]["accuracy"] < 0.6


def test_the_quiet_attacks_change_few_words():
    for pair in LATER:
        if pair.attack in ("reversed_conclusion", "arithmetic_slip"):
            good, bad = pair.good.split(), pair.bad.split()
            changed = sum(
                tag[2] - tag[1] for tag in SequenceMatcher(None, good, bad).get_opcodes() if tag[0] != "equal"
            )
            assert changed < 0.35 * len(good), pair.id


def test_no_prompt_is_asked_twice():
    """Not in the benchmark, not in the trial, not in training (which the data gate refuses, too)."""
    benchmark = [(pair.id, pair.prompt) for pair in PAIRS]
    others = [(twin.id, twin.prompt) for twin in TWINS]
    others += [(sample.id, text) for sample in read_suite(TRIBUNAL, "all") for text in sample.messages]
    others += [(example.id, example.prompt) for example in examples()]
    digests = fingerprint([text for _, text in (*benchmark, *others)]).minhash()
    for i, (name, _) in enumerate(benchmark):
        alike = (digests == digests[i]).mean(axis=1)
        alike[i] = 0
        nearest = int(np.argmax(alike))
        assert alike[nearest] < NEAR, f"{name} asks what {(*benchmark, *others)[nearest]} asks"


def test_calibrations_of_the_first_benchmark_are_recognised():
    for file in (TRIBUNAL / "calibrations").glob("*.json"):
        calibration = Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
        if calibration.pairs == 66:
            assert grown_since(calibration, TRIBUNAL) == "2026-11-27"
