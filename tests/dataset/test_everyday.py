"""Everyday requests for the base's own answers, and a user's replay file that teaches what is held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from helpers.tiny_runs import CONSTITUTION, examples, small
from noesis.core.errors import ConfigError, DataError
from noesis.core.jsonl import jsonl_files
from noesis.dataset.auxiliary import read_replay
from noesis.dataset.encode import own_answer_rows
from noesis.dataset.everyday import everyday_requests, own_conversations
from noesis.dataset.schema import Dataset, Example
from noesis.llm.row_encoder import open_encoder
from noesis.synthesis.known_prompts import known_prompts

SELF = {"training.replay.file": "self", "training.replay.share": 0.2}


def dataset(record: dict, count: int = 40) -> Dataset:
    made = examples(count + 3, record)
    return Dataset(tuple(made[:count]), tuple(made[count:]))


def test_no_everyday_request_is_a_question_of_the_tribunal_or_an_example():
    known = known_prompts(jsonl_files(ROOT / "data" / "tribunal", below=True))
    examples_too = known_prompts(jsonl_files(ROOT / "data" / "training", below=True))
    found = [(r, k.find_similar(r)) for _, r in everyday_requests() for k in (known, examples_too)]
    assert [pair for pair in found if pair[1]] == []


def test_the_base_is_asked_for_the_share_that_is_configured(record: dict):
    data, config = dataset(record), small(**SELF)
    asked = own_conversations(config, data, CONSTITUTION)
    assert len(asked) == 10  # of 50 rows
    assert {language for language, _ in asked} == {"pt"}
    assert {len(messages) for _, messages in asked} == {1, 2}  # without and with the system prompt
    assert own_conversations(config, data, CONSTITUTION) == asked
    assert own_conversations(small(**SELF, **{"training.seed": 7}), data, CONSTITUTION) != asked
    assert own_conversations(small(), data, CONSTITUTION) == []
    both = own_conversations(small(**SELF, **{"training.data.language": "both"}), data, CONSTITUTION)
    assert {language for language, _ in both} == {"pt", "en"}
    spanish = own_conversations(small(**SELF, **{"training.data.language": "es"}), data, CONSTITUTION)
    assert {language for language, _ in spanish} == {"en"}  # there are no requests in Spanish
    assert len(spanish) == 10


def test_the_base_is_never_asked_what_is_held_out(record: dict):
    data, config = dataset(record), small(**{"training.replay.kl_weight": 1.0, "training.replay.share": 0.5})
    asked = {messages[-1]["content"] for _, messages in own_conversations(config, data, CONSTITUTION)}
    prompt = sorted(asked)[0]
    held_out = Example.from_json(record | {"prompt": prompt.upper()})
    without = own_conversations(config, replace(data, held_out=(held_out,)), CONSTITUTION)
    assert {messages[-1]["content"] for _, messages in without} == asked - {prompt}


def test_an_answer_that_was_cut_does_not_teach_to_stop(tiny_tokenizer_folder: Path):
    encoder = open_encoder(tiny_tokenizer_folder)
    asked = [[{"role": "user", "content": "Diga olá."}]] * 3
    rows = own_answer_rows(
        asked, ["Olá!", "  ", "um dois três quatro"], encoder, max_length=2048, max_new_tokens=8, anchored=True
    )
    assert len(rows) == 2  # nothing was answered to the second
    assert all(row.anchored for row in rows)
    whole, cut = rows
    assert whole.labels[-1] == whole.input_ids[-1]
    assert cut.trained == len("um dois três quatro".encode()) or cut.labels[-1] == -100


def test_held_to_the_base_needs_sft_and_the_engine():
    for method in ("dpo", "distill"):
        with pytest.raises(ConfigError, match=f"method: {method} has no SFT part"):
            small(**{"training.replay.kl_weight": 1.0, "training.method": method})
    with pytest.raises(ConfigError, match="kl_weight"):
        small(**{"training.replay.kl_weight": 1.0, "training.engine": "unsloth"})
    with pytest.raises(ConfigError, match="include_critique: false"):
        small(**{"training.method": "distill", "training.constitutional_ai.include_critique": True})


def test_what_is_not_configured_leaves_the_digest_as_it_was():
    """The digest of a run with a user's file was that of the share alone."""
    plain = small().deciding()["training"]
    assert "replay" not in plain
    assert small(**{"training.replay.file": "data/r.jsonl"}).deciding()["training"]["replay"] == {"share": 0.1}
    assert small(**SELF).digest() != small(**{"training.replay.file": "data/r.jsonl"}).digest()
    assert small(**{"training.replay.kl_weight": 1.0}).digest() != small(**SELF).digest()


@pytest.mark.parametrize(
    ("prompt", "response", "said"),
    [
        ("  PERGUNTA 9: o que é a coragem?", "Outra coisa.", "its prompt is that of a held-out example"),
        ("Quem é você?", "Bem: {revised} E é isso.", "it teaches the answer to held-out example x_009"),
        ("Quem é você?", "{most}", "it teaches the answer to held-out example x_009"),
    ],
)
def test_a_replay_file_that_teaches_what_is_held_out_is_refused(
    tmp_path: Path, record: dict, prompt: str, response: str, said: str
):
    held_out = examples(10, record)[9:]
    revised = held_out[0].response_revised
    words = revised.upper().split()
    text = response.format(revised=revised, most=" ".join(words[: len(words) * 3 // 4]))
    file = tmp_path / "replay.jsonl"
    lines = [{"prompt": "Que horas são?", "response": "Não sei."}, {"prompt": prompt, "response": text}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match=said) as error:
        read_replay(file, held_out)
    assert "replay.jsonl:2" in str(error.value)
    assert len(read_replay(file)) == 2
