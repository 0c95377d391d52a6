"""The data gate between rows: near-duplicates, template families, leaks between files, the Tribunal's questions."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data_gate import BARE, CONFIG, CONSTITUTION, PROJECT, check
from noesis.core.config import load_config
from noesis.core.errors import DataError
from noesis.dataset.checks.contamination import known_questions
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import components
from noesis.dataset.export import export
from noesis.dataset.load import read_exports

# --- likeness


def test_fingerprints_tell_texts_apart_as_a_reader_would():
    same = [
        "Olá — mundo, cruel e vasto demais hoje",
        "olá mundo CRUEL e vasto demais hoje!",
        "  Olá, mundo:\ncruel e vasto demais hoje…",
    ]
    other = ["olá mundo cruel e vasto demais", "!!!", "???", "a", "a b", "b a", "olá", "ola"]
    keys = fingerprint(same + other).key
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 1 + len(other)
    assert (fingerprint(other[::-1]).key[::-1] == keys[3:]).all()  # a text's key does not depend on its neighbours


def test_decomposed_accents_read_alike():
    text = "A razão não é só opinião"
    assert len(set(fingerprint([text, unicodedata.normalize("NFD", text)]).key)) == 1


def test_minhash_estimates_the_share_of_common_word_triples():
    generator = random.Random(0)
    words = [f"w{i}" for i in range(400)]
    replaced = list(words)
    for i in generator.sample(range(400), 40):
        replaced[i] = "x" + replaced[i]
    a, b = (set(zip(t, t[1:], t[2:], strict=False)) for t in (words, replaced))
    digest = fingerprint([" ".join(words), " ".join(replaced)]).minhash()
    assert abs((digest[0] == digest[1]).mean() - len(a & b) / len(a | b)) < 0.15


@settings(max_examples=60)
@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=80))
def test_components_against_a_plain_search(count: int, edges: list[tuple[int, int]]):
    edges = [(a % count, b % count) for a, b in edges]
    label = list(range(count))
    for _, (a, b) in itertools.product(range(count), edges):
        label[a] = label[b] = min(label[a], label[b])
    found = components(count, np.array([a for a, _ in edges], int), np.array([b for _, b in edges], int))
    assert found.tolist() == label


def template_family(rows: int) -> list[dict]:
    concepts = [
        "coragem",
        "justiça",
        "amizade",
        "o tempo",
        "a liberdade",
        "a beleza",
        "a morte",
        "o dever",
        "a alegria",
        "o bem comum",
        "o medo",
    ]
    authors = ["Platão", "Kant", "Spinoza", "Sêneca", "Hume", "Simone Weil"]
    made = []
    for i, (concept, author) in enumerate(itertools.islice(itertools.product(concepts, authors), rows)):
        answer = (
            f"A questão de {concept} é profunda e merece cuidado. Para {author}, tudo começa em separar o que parece do que é; e quando se olha para {concept} "
            "com calma vê-se que o exemplo muda com o caso. Convém perguntar o que se entende por isso antes de concluir qualquer coisa."
        )
        made.append(
            BARE[i]
            | {
                "id": f"t_{i}",
                "prompt": f"Como {author} entenderia {concept} na vida de hoje, e por quê?",
                "response_revised": answer,
            }
        )
    return made


def test_a_planted_template_family_is_named_and_stays_on_one_side(write_rows, tmp_path: Path):
    family = template_family(40)
    file = write_rows(*BARE, *family)
    report = check(file)
    assert not report.errors
    largest = report.clusters[0]
    assert {report.table.ids[i] for i in largest.rows} <= {r["id"] for r in family}
    assert len(largest.rows) >= 36
    warning = next(p for p in report.warnings if p.code in ("template", "near-duplicates"))
    assert "rows with" in warning.message
    export([file], tmp_path / "out", CONSTITUTION, CONFIG)
    held_out = [
        json.loads(line)["id"] for line in (tmp_path / "out" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert held_out
    assert len([i for i in held_out if i.startswith("t_")]) in (0, 40)


def test_the_hand_written_examples_have_no_family():
    assert check(*PROJECT.sources("both")).clusters == []


def test_few_answers_for_many_rows(write_rows):
    rows = [
        BARE[i % 8] | {"id": f"r{i}", "category": "maieutica", "prompt": f"{BARE[i % 124]['prompt']} ({i})"}
        for i in range(200)
    ]
    report = check(write_rows(*rows))
    message = next(p.message for p in report.warnings if p.code == "few-answers")
    assert "200 rows, 8 distinct answers" in message


def test_dedupe_keeps_one_of_each_cluster_and_names_the_others(write_rows, tmp_path: Path):
    file = write_rows(
        *BARE,
        *template_family(30),
        BARE[3] | {"id": "copy", "category": "maieutica", "response_revised": BARE[3]["response_revised"] + "."},
    )
    export([file], tmp_path / "out", CONSTITUTION, CONFIG, dedupe=True)
    kept = [
        json.loads(line)["id"]
        for name in ("train", "eval")
        for line in (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    dropped = [
        json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(kept) + len(dropped) == 124 + 31
    assert sum(i.startswith("t_") for i in kept) <= 2
    assert {"copy", BARE[3]["id"]} & {d["id"] for d in dropped}
    assert {d["kept"] for d in dropped} <= set(kept)
    assert all(d["line"] > 0 and d["reason"] for d in dropped)
    assert json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))["duplicates"] == {
        "dropped": len(dropped)
    }


def test_rows_that_are_all_alike_can_not_be_split(write_rows, tmp_path: Path):
    with pytest.raises(DataError, match="all of which say the same"):
        export([write_rows(*template_family(40))], tmp_path / "out", CONSTITUTION, CONFIG)
    assert not (tmp_path / "out").exists()


# --- leaks


def test_a_planted_leak_between_files_is_refused_with_the_pair(write_rows, tmp_path: Path):
    write_rows(*BARE[:100], name="train.jsonl")
    words = BARE[7]["response_revised"].split()
    words[5] = words[40] = "talvez"
    write_rows(
        *BARE[100:],
        BARE[7]
        | {"id": "leak", "prompt": "Outra pergunta, bem diferente daquela?", "response_revised": " ".join(words)},
        name="eval.jsonl",
    )
    report = check(tmp_path / "train.jsonl", tmp_path / "eval.jsonl")
    (leak,) = [p for p in report.errors if p.code == "leak"]
    assert leak.file.endswith("eval.jsonl")
    assert leak.line == 25
    assert "train.jsonl:8" in leak.message
    assert BARE[7]["id"] in leak.message
    with pytest.raises(DataError, match=r"eval\.jsonl:25.*nearly the same answer"):
        read_exports(tmp_path, CONSTITUTION)


def test_an_export_has_no_leak_by_its_own_gate(tmp_path: Path):
    export(PROJECT.sources("both"), tmp_path, CONSTITUTION, load_config(PROJECT, {"training.data.language": "both"}))
    dataset = read_exports(tmp_path, CONSTITUTION)
    assert (len(dataset.train), len(dataset.held_out)) == (222, 26)


def test_questions_of_the_tribunal_are_not_trained_on(write_rows, tmp_path: Path):
    tribunal = tmp_path / "tribunal" / "prompts"
    tribunal.mkdir(parents=True)
    question = BARE[10]["prompt"]
    rows = [
        {"id": "q1", "prompt": question.upper()},
        {"id": "q2", "prompt": "Nada que alguém pergunte?", "turns": [{"role": "user", "content": "oi"}]},
    ]
    (tribunal / "facts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{BARE[10]['id']}\) asks what .*facts\.jsonl:1"):
        export([write_rows(*BARE)], tmp_path / "out", CONSTITUTION, CONFIG, tribunal=tmp_path / "tribunal")
    assert not (tmp_path / "out").exists()
    rows = write_rows(*BARE[:10], *BARE[11:])
    found = export([rows], tmp_path / "out", CONSTITUTION, CONFIG, tribunal=tmp_path / "tribunal")
    assert found.to_json()["train"]["examples"] > 100


def test_no_committed_example_asks_what_the_tribunal_asks():
    report = check(*PROJECT.sources("both"))
    assert list(known_questions(report.table, report.files, PROJECT.data / "tribunal")) == []
