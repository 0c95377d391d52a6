"""The gate as a whole: repetition, templates, leaks, secrets, forged turns of the model at hand, rows beyond its window; and that all of it is caught in bulk."""

from __future__ import annotations

import itertools
import json
import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.errors import DataError
from noesis.core.language import missing_accents, other_language
from noesis.core.project import Project
from noesis.core.text import INVISIBLE, closing
from noesis.dataset.checks import scan
from noesis.dataset.checks.contamination import known_questions
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.checks.near_duplicates import components
from noesis.dataset.checks.privacy import find_personal
from noesis.dataset.checks.validate import validate
from noesis.dataset.export import export
from noesis.dataset.load import read_exports
from noesis.dataset.schema import Example

PROJECT = Project(ROOT)
CONFIG = load_config(PROJECT)
CONSTITUTION = load_constitution(PROJECT.constitution)
EXAMPLES = [
    json.loads(line)
    for file in sorted((PROJECT.training / "philosophical").glob("*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]
BARE = [
    {
        k: r[k]
        for k in (
            "id",
            "category",
            "prompt",
            "response_initial",
            "critique",
            "response_revised",
            "reasoning",
            "values_applied",
            "difficulty",
        )
    }
    for r in EXAMPLES
]


def check(*files: Path, **options):
    return validate(list(files), CONSTITUTION, CONFIG.training.data.categories, **options)


def codes(report) -> set[str]:
    return {p.code for p in report.problems}


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


@settings(max_examples=60, deadline=None)
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


# --- what a line may hide


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("Meu CPF é 529.982.247-25, pode usar.", "CPF", "52*.***.***-**"),
        ("CPF 52998224725", "CPF", "52*********"),
        ("CNPJ 11.222.333/0001-81", "CNPJ", "11.***.***/****-**"),
        ("CNPJ novo: 12.ABC.345/01DE-35", "CNPJ", "12.***.***/****-**"),
        ("escreva para maria.silva@correio.com.br hoje", "e-mail address", "ma***.*****@*******.***.**"),
        ("ligue (11) 91234-5678", "telephone number", "(11) *****-****"),
        ("call +44 20 7946 0958", "telephone number", "+44 ** **** ****"),
        ("token hf_abcdefghijklmnopqrstuvwx1", "access token", "hf_" + "*" * 25),
        ("-----BEGIN RSA PRIVATE KEY-----", "access token", "-----BE*** *** ******* ***-----"),
    ],
)
def test_personal_data_and_secrets_are_found_and_masked(text: str, kind: str, shown: str):
    assert find_personal(text) == [(kind, shown)]


@pytest.mark.parametrize(
    "text",
    [
        "CPF 529.982.247-26",
        "111.111.111-11",
        "de 1914 a 1918 e de 1939 a 1945",
        "ligue 188 ou 190",
        "π = 3,1415926535",
        "write to you@example.com",
        "ISBN 978-85-7326-000-0",
        "12/11/2026 às 14:30",
    ],
)
def test_what_only_looks_personal_is_left_alone(text: str):
    assert find_personal(text) == []


def test_a_planted_secret_is_reported_but_never_printed(write_rows, record: dict):
    secret = "hf_" + "Zq3" * 9
    report = check(write_rows(record | {"reasoning": f"token {secret}, CPF 529.982.247-25"}))
    assert [p.code for p in report.warnings] == ["personal", "personal"]
    assert secret not in json.dumps(report.to_json())
    assert "982" not in json.dumps(report.to_json())


def test_special_tokens_of_the_model_at_hand(write_rows, record: dict):
    counter = find_token_counter(CONFIG, CONSTITUTION)
    if counter is None:
        pytest.skip("the embedded model's package is not installed")
    file = write_rows(record | {"critique": "Veja <filename>a.py"})  # SmolLM2's own, no chat template's
    assert not check(file).errors
    assert [p.code for p in check(file, counter=counter).errors] == ["forged-turn"]


def test_rows_beyond_the_window_are_errors_with_their_length(write_rows, record: dict):
    counter = find_token_counter(load_config(PROJECT, {"training.max_length": 700}), CONSTITUTION)
    if counter is None:
        pytest.skip("the embedded model's package is not installed")
    long = record | {
        "id": "long",
        "prompt": "Outra coisa, sim?",
        "response_revised": "A verdade, ainda que doa, é melhor. " * 40,
    }
    report = check(write_rows(record, long), counter=counter)
    assert [(p.line, p.code) for p in report.errors] == [(2, "window")]
    length = int(report.errors[0].message.split()[0])
    assert length == counter.length(Example.from_json(long)) > 700
    assert len(report.table) == 1


def test_invisible_characters_are_those_that_unicode_calls_so():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        hidden = unicodedata.category(character) in ("Cf", "Cc", "Co", "Cs", "Zl", "Zp") and character not in "\n\t"
        assert not hidden or INVISIBLE.match(character), f"U+{code:04X}"
    assert not any(INVISIBLE.match(c) for c in "aé中—“”\u0301 \u00a0🙂")


def test_language_and_accents(write_rows, record: dict):
    assert (
        other_language(
            "The question of courage is an old one, and it has been asked by many people in many ages.", "pt"
        )
        == "en"
    )
    assert (
        other_language(
            "La pregunta por el valor es antigua y la hicieron muchas personas en muchas épocas distintas.", "pt"
        )
        == "es"
    )
    assert other_language(BARE[0]["response_revised"], "pt") is None
    assert missing_accents("Voce nao sabe a razao disso, e a questao nao se resolve assim.") == [
        "nao",
        "questao",
        "razao",
        "voce",
    ]
    assert missing_accents(BARE[0]["response_revised"]) == []
    assert (
        missing_accents("Uma frase sem acento algum que ainda assim vale como prosa correta em qualquer manual.") == []
    )
    bare = unicodedata.normalize("NFD", BARE[0]["response_revised"]).encode("ascii", "ignore").decode()
    assert codes(check(write_rows(record | {"response_revised": bare}))) == {"accents"}
    assert codes(check(write_rows(record | {"language": "en"}))) == {"language"}


def test_a_closing_that_many_answers_share(write_rows):
    rows = [
        r | {"response_revised": f"{r['response_revised']} Espero que esta reflexão ajude você nesta jornada!"}
        for r in BARE[:6]
    ]
    report = check(write_rows(*rows, *BARE[6:]))
    (warning,) = [p for p in report.warnings if p.code == "closing"]
    assert "6 answers end alike: 'Espero que esta reflexão" in warning.message
    assert closing("Só uma frase") == ""


def test_lopsided_sets(write_rows):
    rows = [
        r
        | {
            "category": "maieutica" if i > 3 else "tribunal",
            "critique": "[VERITAS] a [SOPHIA] b [DIKE] c",
            "values_applied": ["verdade"],
        }
        for i, r in enumerate(BARE)
    ]
    messages = [p.message for p in check(write_rows(*rows)).warnings if p.code == "balance"]
    assert any("'maieutica' has 120 rows, 'tribunal' 4" in m for m in messages)
    assert any("'humildade' is applied in 0 of 124" in m for m in messages)


def test_a_revision_that_only_adds_length(write_rows, record: dict):
    longer = record["response_revised"] + " " + BARE[0]["response_revised"]
    row = record | {"response_initial": record["response_revised"], "response_revised": longer}
    assert "length-only" in codes(check(write_rows(row)))
    assert "length-only" not in codes(check(write_rows(record)))


def test_a_field_that_stands_twice_is_no_record(write_rows, record: dict):
    line = json.dumps(record)[:-1] + ', "prompt": "Outra pergunta inteira?"}'
    report = check(write_rows(line.encode()))
    assert [p.code for p in report.errors] == ["duplicate-field"]
    assert "'prompt' appears twice" in report.errors[0].message


# --- in bulk


def test_many_processes_report_as_one_does(write_rows, monkeypatch: pytest.MonkeyPatch):
    rows = [r | {"id": f"{r['id']}_{i}"} for i in range(3) for r in BARE]
    file = write_rows(*rows[:100], b"{broken", *rows[100:], b"\xff", rows[0])
    whole = check(file)
    monkeypatch.setattr(scan, "CHUNK_SIZE", 40_000)
    monkeypatch.setattr(scan, "PARALLEL_FROM", 1)
    parts = check(file)
    assert [str(p) for p in parts.problems] == [str(p) for p in whole.problems]
    assert [p.line for p in parts.errors] == [101, 374, 375]
    assert parts.table.ids == whole.table.ids
    assert parts.to_json() == whole.to_json()


def test_of_a_thousand_like_errors_twenty_are_shown_and_all_are_counted(write_rows, record: dict):
    report = check(
        write_rows(*[record | {"id": f"x{i}", "prompt": "O que é {conceito}, afinal?"} for i in range(1000)])
    )
    assert report.total("error") == 1000
    assert len(report.errors) == 20


MUTATIONS = [
    lambda line, at: line[:at],  # a cut line
    lambda line, at: line[:at] + b"\xff\xfe" + line[at:],
    lambda line, at: line[:at] + b"\n" + line[at:],
    lambda line, at: line.decode().encode("utf-16"),
    lambda line, at: line.decode().encode("latin-1", "replace"),
    lambda line, at: line[:at] + b"[" * 3000 + line[at:],
    lambda line, at: line * 40,
    lambda line, at: line.replace(b'"prompt": "', b'"prompt": {"a": "', 1),
    lambda line, at: line.replace(b":", b":" + b"9" * 5000 + b",", 1),
    lambda line, at: line[:at] + b"\\ud800" + line[at:],
    lambda line, at: b"\xef\xbb\xbf" + line,
    lambda line, at: line.replace(b"\\n", b"\r\n"),
]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 123), st.sampled_from(MUTATIONS), st.floats(0, 1)), min_size=1, max_size=6),
    st.booleans(),
)
def test_damaged_files_end_in_a_report_and_never_in_an_export(tmp_path: Path, damage: list, dedupe: bool):
    lines = [json.dumps(r, ensure_ascii=False).encode() for r in EXAMPLES[:12]]
    for index, mutate, share in damage:
        line = json.dumps(EXAMPLES[index], ensure_ascii=False).encode()
        lines.append(mutate(line, int(share * len(line))))
    file = tmp_path / "damaged.jsonl"
    file.write_bytes(b"\n".join(lines))
    report = check(file)
    json.dumps(report.to_json(), ensure_ascii=False).encode()
    assert len(report.table) + report.total("error") >= 12
    if report.errors:
        with pytest.raises(DataError):
            export([file], tmp_path / "out", CONSTITUTION, CONFIG, dedupe=dedupe)
        assert not (tmp_path / "out").exists()
