"""Examples and datasets as objects: what was read is given back, hashes stay what they were, and rows are encoded once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.files import sha256_json
from noesis.core.project import Project
from noesis.dataset.auxiliary import add_auxiliary
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.encode import example_pairs, prompt_messages, training_rows
from noesis.dataset.load import read_run_copy, split_sources
from noesis.dataset.schema import Dataset, Example, GeneratedExample, PreferencePair, ReplayRow, examples_digest
from noesis.llm.row_encoder import encoder_for, open_encoder
from noesis.llm.tokenizer import ChatTokenizer

PROJECT = Project(ROOT)
CONSTITUTION = load_constitution(PROJECT.constitution)
GOLDEN = ROOT / "tests" / "helpers" / "golden_run"
RULES = Rules(tuple(sorted(CONSTITUTION.value_ids)), CONSTITUTION.principle_ids, (), doubts=False)
LINEAGE = {
    "method": "m",
    "model": "x",
    "critic": "y",
    "source": "s",
    "constitution_sha256": "0",
    "seed": 1,
    "settings": {"any": {"thing": [1]}},
    "steps": [{"unknown": "key"}],
}


# --- one example


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"turns": None, "principles": [], "sources": None},
        {"turns": [{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}]},
        {"sources": [{"work": "w", "author": "a"}], "key": "valid", "stance": "agree"},
        {"generated": True, "lineage": LINEAGE},
    ],
)
def test_an_example_gives_back_the_object_that_was_read(record: dict, more: dict):
    raw = dict(reversed((record | more).items()))  # in an order that is not that of the fields
    read = Example.from_json(raw)
    for example in (read, check_line(json.dumps(raw).encode(), RULES)[0], pickle.loads(pickle.dumps(read))):
        assert json.dumps(example.to_json()) == json.dumps(raw)
    assert isinstance(example, GeneratedExample) == ("generated" in more)


def test_an_example_can_not_be_edited(record: dict):
    example = Example.from_json(record | {"turns": None})
    with pytest.raises(ValueError, match="frozen"):
        example.prompt = "Another?"
    assert (example.turns, example.principles, example.sources) == ((), (), ())
    assert example.values_applied == ("verdade", "sabedoria")
    example.to_json()["prompt"] = "Another?"
    assert example.to_json()["prompt"] == record["prompt"]


def test_null_turns_are_no_turns(record: dict):
    """`"turns": null` passed the gate and then broke the training."""
    messages = prompt_messages(CONSTITUTION, Example.from_json(record | {"turns": None}))
    assert [m["role"] for m in messages] == ["system", "user"]


def test_an_alias_of_an_optional_field_is_an_unknown_field(record: dict):
    """An example labelled `lang` was taken for Portuguese, without a word."""
    example, findings = check_line(json.dumps(record | {"lang": "en"}).encode(), RULES)
    assert example is None
    assert [(f.code, f.message) for f in findings] == [("unknown-field", "unknown field 'lang'")]


# --- the whole dataset


def test_the_digest_is_that_of_the_run_made_by_the_first_version():
    identity = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["identity"]
    dataset = read_run_copy(GOLDEN / "data", load_constitution(GOLDEN / "data" / "constitution.yaml"))
    assert dataset.digest() == identity["dataset_sha256"]


def test_the_digest_covers_pairs_and_replayed_rows(record: dict):
    example = Example.from_json(record)
    pair = {"id": "p", "prompt": "Why?", "chosen": "Yes.", "rejected": "No.", "p_chosen": 1.0}
    chat = {"prompt": "Hi", "response": "Hello"}
    dataset = Dataset((example,), (), (PreferencePair.model_validate(pair),), (ReplayRow.model_validate(chat),))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    auxiliary = {"pairs": [{**pair, "language": "pt"}], "replay": [{"messages": messages}]}
    assert dataset.digest() == sha256_json([[record], [], auxiliary])
    assert Dataset((example,), (example,)).digest() == sha256_json([[record], [record]])
    assert Dataset((example,), (), None, ()).digest() == sha256_json([[record], [], {"replay": []}])
    assert examples_digest([example]) == sha256_json([record])


def test_a_subset_is_the_same_for_the_same_seed(record: dict):
    dataset = Dataset(tuple(Example.from_json(record | {"id": f"x{i}"}) for i in range(20)))
    few = dataset.subset(5, 1)
    assert len(few.train) == 5
    assert few == Dataset(dataset.train[::-1]).subset(5, 1) != dataset.subset(5, 2)
    assert dataset.subset(None, 1) == dataset


def test_so_small_a_share_of_replayed_rows_that_none_is_drawn(project: Path, record: dict, tmp_path: Path, write_rows):
    """The run's own copy of no rows was refused as an empty file by the next stage."""
    write_rows({"prompt": "Say 1.", "response": "1"}, name="replay.jsonl").rename(project / "replay.jsonl")
    config = load_config(
        Project(project),
        {"training.replay.file": "replay.jsonl", "training.replay.share": 0.001, "training.method": "sft"},
    )
    train = Dataset(tuple(Example.from_json(record | {"id": f"x{i}"}) for i in range(8)))
    dataset = add_auxiliary(train, Project(project), config)
    assert dataset.replay == ()
    copy = tmp_path / "data"
    copy.mkdir()
    for name in ("train", "eval"):
        write_rows(record).rename(copy / f"{name}.jsonl")
    (copy / "replay.jsonl").touch()
    assert read_run_copy(copy, CONSTITUTION).replay == ()


# --- what is printed


def test_counts_are_printed_as_numbers(project: Path, capsys: pytest.CaptureFixture[str]):
    """The first stage of every demo printed `124 examples in [PosixPath('…'), …] files`."""
    from noesis.pipeline.demo import _check_other_languages

    config = load_config(Project(project), {"training.data.language": "en"})
    _check_other_languages(Project(project), config)
    split_sources(Project(project).sources("en"), CONSTITUTION, config)
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        "  124 examples in 12 files: no errors, 0 warnings (pt: not used by this run)",
        "  124 examples in 12 files: no errors, 0 warnings",
        "  held out 13 of 124 examples (10%)",
    ]


# --- tokenised once


def test_each_conversation_is_tokenised_once(
    tiny_tokenizer_folder: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    texts: list[str] = []
    encode = ChatTokenizer._encode_uncached
    monkeypatch.setattr(
        ChatTokenizer, "_encode_uncached", lambda self, text, special: texts.append(text) or encode(self, text, special)
    )
    encoder = open_encoder(tiny_tokenizer_folder)
    examples = [Example.from_json(record | {"id": f"x{i}", "prompt": f"O que é a coragem, {i}?"}) for i in range(40)]
    how = {"include_critique": False, "max_length": 2048}
    for _ in range(2):
        rows = training_rows(examples, encoder, CONSTITUTION, **how)
        pairs = example_pairs(examples, encoder, CONSTITUTION, **how)
    assert [pair.chosen for pair in pairs] == rows
    assert sum(record["response_revised"] in text for text in texts) == len(examples)
    assert sum(record["response_initial"] in text for text in texts) == len(examples)
    assert encoder_for(tiny_tokenizer_folder, encoder) is encoder
    assert encoder_for(tiny_tokenizer_folder, None) is not encoder
