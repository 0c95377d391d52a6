"""The constitution, and how a conversation is put before a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.constitution.analysis_block import hide_analysis
from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import load_constitution
from noesis.core.errors import ConstitutionError, ModelError, TrainingError
from noesis.dataset.encode import prompt_messages, target_text
from noesis.dataset.schema import Example
from noesis.llm.chat_template import encode, end_of_turn, render
from noesis.llm.token_rows import IGNORED
from noesis.llm.tokenizer import load_tokenizer

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")


def test_the_committed_constitution():
    assert [v.id for v in CONSTITUTION.values] == ["verdade", "sabedoria", "justica", "florescimento", "alianca"]
    assert CONSTITUTION.value_ids == {"verdade", "sabedoria", "justica", "florescimento", "alianca", "humildade"}
    assert 16 <= len(CONSTITUTION.principles) <= 24
    assert all(p["pt"] != p["en"] for p in CONSTITUTION.principles)
    assert [v.judge for v in CONSTITUTION.values][:3] == ["veritas", "sophia", "dike"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'value: justica\n    pt: "Noesis considera',
            'value: justiça\n    pt: "Noesis considera',
            ["contar-os-afetados"],
        ),
        (
            'value: justica\n    pt: "Noesis considera',
            'value: coragem\n    pt: "Noesis considera',
            ["contar-os-afetados", "coragem"],
        ),
        ("id: mesma-medida", "id: fontes-reais", ["fontes-reais", "twice"]),
        ("version:", "vershun:", ["vershun"]),
        (
            '    en: "Noesis asserts what it can support',
            '    enn: "Noesis asserts what it can support',
            ["afirmar-o-que-sustenta"],
        ),
        ("system_prompt:\n", "system_prompt: [\n", ["not valid YAML"]),
    ],
)
def test_a_mistake_names_the_entry(tmp_path: Path, old: str, new: str, said: list[str]):
    text = (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "c.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(tmp_path / "c.yaml")
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_comments_do_not_change_the_digest(tmp_path: Path):
    text = (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8")
    (tmp_path / "c.yaml").write_text("# another comment\n" + text, encoding="utf-8")
    assert load_constitution(tmp_path / "c.yaml").digest() == CONSTITUTION.digest()


def test_only_the_answer_is_trained_with_its_end_of_turn(tiny_tokenizer_folder: Path, record: dict):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    row = encode(
        tokenizer, opening_messages(CONSTITUTION, "pt", record["prompt"]), record["response_revised"], name="x"
    )
    trained = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == record["response_revised"] + "<|im_end|>"
    assert row.trained == len(trained)
    assert trained[-1] == tokenizer.eos_token_id == end_of_turn(tokenizer)
    masked = tokenizer.decode(row.input_ids[: -len(trained)])
    assert masked.startswith("<|im_start|>system\nVocê é Noesis")
    assert masked.endswith(record["prompt"] + "<|im_end|>\n<|im_start|>assistant\n")


def test_turns_and_language_reach_the_prompt(record: dict):
    record |= {
        "language": "en",
        "turns": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}],
    }
    messages = prompt_messages(CONSTITUTION, Example.from_json(record))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == CONSTITUTION.system_prompt["en"]


def test_critique_precedes_the_answer_only_if_asked_and_is_hidden_again(record: dict):
    example = Example.from_json(record)
    assert target_text(example, include_critique=False) == record["response_revised"]
    with_critique = target_text(example, include_critique=True)
    assert with_critique.startswith("[ANÁLISE INTERNA]\n" + record["critique"] + "\n[FIM DA ANÁLISE]")
    assert hide_analysis(with_critique) == record["response_revised"]
    assert hide_analysis("[ANÁLISE INTERNA] never closed") == ""
    assert hide_analysis("plain") == "plain"


def test_a_template_without_end_of_turn_is_refused(tiny_tokenizer_folder: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "t"
    shutil.copytree(tiny_tokenizer_folder, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(TrainingError, match="never stop"):
        end_of_turn(load_tokenizer(folder))


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_tokenizer_folder: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "t"
    shutil.copytree(tiny_tokenizer_folder, folder)
    (folder / "chat_template.jinja").write_text(
        "{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(TrainingError, match="can't be masked"):
        encode(load_tokenizer(folder), [{"role": "user", "content": "a"}], "b", name="x")


def test_a_template_can_not_reach_python(tiny_tokenizer_folder: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "t"
    shutil.copytree(tiny_tokenizer_folder, folder)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ModelError):
        render(load_tokenizer(folder), [{"role": "user", "content": "a"}], add_generation_prompt=False)


@pytest.mark.slow
def test_our_tokenizer_equals_transformers(tiny_tokenizer_folder: Path, record: dict):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(tiny_tokenizer_folder), AutoTokenizer.from_pretrained(tiny_tokenizer_folder)
    conversation = [
        *opening_messages(CONSTITUTION, "pt", record["prompt"]),
        {"role": "assistant", "content": record["response_revised"]},
    ]
    for prompt in (True, False):
        text = render(ours, conversation, add_generation_prompt=prompt)
        assert text == theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
        assert ours(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
