"""The data gate on single rows and in bulk: personal data, special tokens, length, language, balance, damaged files."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.data_gate import BARE, CONFIG, CONSTITUTION, EXAMPLES, PROJECT, check, codes
from noesis.core.config import load_config
from noesis.core.errors import DataError
from noesis.core.language import missing_accents, other_language
from noesis.core.text import closing
from noesis.dataset.checks import scan
from noesis.dataset.checks.invisible import INVISIBLE, LINE_BREAKS
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.checks.privacy import find_personal
from noesis.dataset.export import export
from noesis.dataset.schema import Example

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
        hidden = unicodedata.category(character) in ("Cf", "Cc", "Co", "Cs", "Zl", "Zp")
        hidden = hidden and character not in LINE_BREAKS + "\t"
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


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
