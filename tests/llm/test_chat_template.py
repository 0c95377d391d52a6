"""Conversations in the templates of five families of models: what is trained on is the answer and its end of turn, or the row is refused by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from helpers.project import ROOT
from helpers.tiny_tokenizers import CHATML, LLAMA, MISTRAL_FIRST, MISTRAL_LAST, QWEN_THINKING, STANDINS, write_standin
from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import load_constitution
from noesis.core.errors import ModelError, TrainingError
from noesis.dataset.encode import training_rows
from noesis.dataset.schema import Example
from noesis.llm.chat_template import encode, end_of_turn, fold_system, refusal_reason, render, takes_system
from noesis.llm.row_encoder import RowEncoder
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")
SYSTEM = {"role": "system", "content": "Você é Noesis."}
EARLIER = [{"role": "user", "content": "Olá."}, {"role": "assistant", "content": "Bom dia."}]
QUESTION = {"role": "user", "content": "O que é a coragem?"}
ANSWER = "Quem nada teme não precisa dela; 😀 aparece com o medo.\n\nNão é?"


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory):
    """A stand-in by its name, perhaps with another template; built once."""

    @cache
    def load(name: str, template: str | None = None) -> ChatTokenizer:
        return load_tokenizer(write_standin(tmp_path_factory.mktemp("standin"), name, template=template))

    return load


def parts(tokenizer: ChatTokenizer, row: TokenRow) -> tuple[str, str]:
    """Masked and trained text."""
    start = len(row.labels) - row.trained
    assert all(label == IGNORED for label in row.labels[:start])
    assert row.labels[start:] == row.input_ids[start:]
    return tokenizer.decode(row.input_ids[:start]), tokenizer.decode(row.input_ids[start:])


@pytest.mark.parametrize("turns", [[], EARLIER], ids=["one turn", "two turns"])
@pytest.mark.parametrize("name", STANDINS)
def test_the_answer_and_its_end_of_turn_are_trained_and_nothing_else(standin, name: str, turns: list):
    tokenizer, stop = standin(name), STANDINS[name][4]
    messages = [SYSTEM, *turns, QUESTION]
    row = encode(tokenizer, messages, ANSWER, name="x")
    masked, trained = parts(tokenizer, row)
    thoughts = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert trained.lstrip(" ") == thoughts + ANSWER + stop
    assert tokenizer.convert_ids_to_tokens([end_of_turn(tokenizer)]) == [stop]
    assert refusal_reason(row, stop=end_of_turn(tokenizer), max_length=1000) is None
    # What stands before the answer is what the model is given when it is served, to the token.
    served = render(tokenizer, messages, add_generation_prompt=True)
    assert row.input_ids[: -row.trained] == tokenizer(served)["input_ids"]
    assert masked.count(SYSTEM["content"]) == 1
    assert all(masked.count(m["content"]) == 1 for m in [*turns, QUESTION])
    assert row.input_ids.count(tokenizer.bos_token_id) == (
        len(messages) + 1 if name == "smollm2" else 0 if name in ("qwen2.5", "qwen3", "phi-3") else 1
    )


@pytest.mark.parametrize("name", STANDINS)
@pytest.mark.parametrize(
    "answer",
    [
        "\n\nA linha em branco vem primeiro.",
        "  dois espaços, e no fim três   \n",
        "中文 и 🏛️ e\u0301",
        "1936 + 17 = 1953",
        "[ANÁLISE INTERNA]\na\n[FIM DA ANÁLISE]\n\nb",
    ],
)
def test_answers_at_the_border_are_trained_whole(standin, name: str, answer: str):
    tokenizer = standin(name)
    if name == "phi-3" and answer.startswith("\n"):  # its pieces would fuse the newlines on both sides of the border
        with pytest.raises(TrainingError, match="row x: .* make one token"):
            encode(tokenizer, [SYSTEM, QUESTION], answer, name="x")
        return
    row = encode(tokenizer, [SYSTEM, QUESTION], answer, name="x")
    trained = parts(tokenizer, row)[1]
    assert (
        row.input_ids[: -row.trained]
        == tokenizer(render(tokenizer, [SYSTEM, QUESTION], add_generation_prompt=True))["input_ids"]
    )
    assert trained.removesuffix(STANDINS[name][4]).removeprefix("<think>\n\n</think>").strip() == answer.strip()


def test_a_system_prompt_that_a_template_refuses_opens_the_first_user_message(standin):
    assert {name: takes_system(standin(name)) for name in STANDINS} == {name: name != "gemma-2" for name in STANDINS}
    gemma = standin("gemma-2")
    with pytest.raises(ModelError, match="System role not supported"):
        gemma.apply_chat_template([SYSTEM, QUESTION])
    text = render(gemma, [SYSTEM, *EARLIER, QUESTION], add_generation_prompt=True)
    assert text.startswith(
        "<bos><start_of_turn>user\nVocê é Noesis.\n\nOlá.<end_of_turn>\n<start_of_turn>model\nBom dia.<end_of_turn>\n"
    )
    dropping = standin(
        "smollm2", "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert (
        render(dropping, [SYSTEM, QUESTION], add_generation_prompt=True)
        == "<|im_start|>Você é Noesis.\n\nO que é a coragem?<|im_end|>"
    )


def test_mistral_keeps_the_system_prompt_where_it_is_served(standin):
    """In version 0.3 it stands in the last user message and is gone from the rendering that has an answer."""
    tokenizer = standin("mistral-0.3")
    assert SYSTEM["content"] not in render(tokenizer, [SYSTEM, QUESTION, EARLIER[1]], add_generation_prompt=False)
    masked, trained = parts(tokenizer, encode(tokenizer, [SYSTEM, *EARLIER, QUESTION], ANSWER, name="x"))
    assert masked.replace("  ", " ").endswith("</s>[INST] Você é Noesis.\n\nO que é a coragem?[/INST]")
    assert trained.endswith(ANSWER + "</s>")


def test_what_follows_the_end_of_turn_is_not_in_the_row(standin):
    for name, after in (
        ("smollm2", "<|im_end|>\n"),
        ("gemma-2", "<end_of_turn>\n"),
        ("phi-3", "<|end|>\n<|endoftext|>"),
    ):
        tokenizer = standin(name)
        assert render(tokenizer, [QUESTION, EARLIER[1]], add_generation_prompt=False).endswith(after)
        assert parts(tokenizer, encode(tokenizer, [QUESTION], ANSWER, name="x"))[1].endswith(ANSWER + STANDINS[name][4])


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day(standin):
    text = render(standin("llama-3.2"), [SYSTEM, QUESTION], add_generation_prompt=True)
    assert "Today Date: 26 Jul 2024\n" in text
    assert text == render(standin("llama-3.1"), [SYSTEM, QUESTION], add_generation_prompt=True)


def test_a_default_system_prompt_gives_way_to_ours(standin):
    assert "You are a stand-in." in render(standin("qwen2.5"), [QUESTION], add_generation_prompt=True)
    assert "You are a stand-in." not in render(standin("qwen2.5"), [SYSTEM, QUESTION], add_generation_prompt=True)


THINKS_FIRST = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
SPACE_LAST = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


@pytest.mark.parametrize(
    ("name", "template", "messages", "answer", "said"),
    [
        ("qwen3", THINKS_FIRST, [QUESTION], ANSWER, "renders the prompt differently once an answer follows"),
        ("qwen3", None, [QUESTION], "um</think>dois, e nada mais", "changes the text of the answer"),
        ("llama-3.1", LLAMA.replace("message['content'] | trim", "message['content'] | upper"), [QUESTION], ANSWER, "changes the text of the answer"),
        ("mistral-0.3", None, [SYSTEM, QUESTION, QUESTION], ANSWER, "user and assistant must alternate"),
        ("gemma-2", None, [EARLIER[1], QUESTION], ANSWER, "roles must alternate"),
        ("mistral-0.2", "<s>" + MISTRAL_FIRST, [QUESTION], ANSWER, "begins with two <s> tokens"),
        ("mistral-0.2", SPACE_LAST, [QUESTION], "de novo, e não de novo", "make one token"),
        ("llama-3.1", None, [QUESTION], "Fim.<|eot_id|> E mais.", "answer text holds '<|eot_id|>'"),
        ("mistral-0.3", None, [{"role": "user", "content": "a [/INST] b"}], ANSWER, "user text holds '[/INST]'"),
        ("smollm2", "{{ messages[0].nothing + 1 }}", [QUESTION], ANSWER, "refuses this conversation"),
    ],
)  # fmt: skip
def test_what_can_not_be_masked_is_refused_by_name(
    standin, name: str, template: str | None, messages: list, answer: str, said: str
):
    with pytest.raises(TrainingError) as caught:
        encode(standin(name, template), messages, answer, name="x_001 (pt)")
    assert str(caught.value).startswith("row x_001 (pt)")
    assert said in str(caught.value), str(caught.value)


def train(tokenizer: ChatTokenizer, record: dict, max_length: int = 4000) -> list[TokenRow]:
    return training_rows(
        [Example.from_json(record)], RowEncoder(tokenizer), CONSTITUTION, include_critique=False, max_length=max_length
    )


@pytest.mark.parametrize("name", STANDINS)
def test_training_takes_a_row_that_just_fits_and_refuses_one_token_less(standin, name: str, record: dict):
    (row,) = train(standin(name), record)
    assert train(standin(name), record, len(row.input_ids)) == [row]
    with pytest.raises(
        TrainingError, match=rf"row x_001 \(pt\) has {len(row.input_ids)} tokens, more than max_length .* never cut"
    ):
        train(standin(name), record, len(row.input_ids) - 1)


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("llama-3.1", LLAMA.replace("for message in messages", "for message in messages if message.role != 'assistant'").replace("{%- if add_g", "{%- if 0 and add_g"), "no trained token"),
        ("mistral-0.2", MISTRAL_FIRST.replace("+ eos_token", "+ ('' if loop.last else eos_token)"), "no end-of-turn token"),
        ("mistral-0.3", MISTRAL_LAST.replace("+ eos_token", "+ (eos_token if message['content']|length < 60 else '')"), "end-of-turn token is not trained"),
        ("qwen3", QWEN_THINKING.replace("THINK", "<think>\nso"), "renders the prompt differently"),
    ],
)  # fmt: skip
def test_training_refuses_by_name_what_a_template_spoils(standin, name: str, template: str, said: str, record: dict):
    with pytest.raises(TrainingError, match=said) as caught:
        train(standin(name, template), record)
    assert "row x_001 (pt)" in str(caught.value)


@pytest.mark.parametrize("name", STANDINS)
def test_training_refuses_an_empty_answer(standin, name: str, record: dict):
    with pytest.raises(TrainingError, match=r"row x_001 \(pt\) has no trained token"):
        train(standin(name), record | {"response_revised": " \n " * 20})


@pytest.mark.parametrize("name", STANDINS)
def test_pieces_join_to_the_text_and_a_split_character_is_whole_in_its_last_token(standin, name: str):
    tokenizer = standin(name)
    ids = tokenizer("Olá 🏛️ 中 fim\n")["input_ids"]
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces.count("中") == 1
    assert pieces[pieces.index("中") - 2 : pieces.index("中")] == ["", ""]
    broken = tokenizer.pieces(ids[: pieces.index("中")])  # a row that ends within a character
    assert len(broken) == pieces.index("中")


def test_a_generation_block_in_a_template_is_let_through(standin):
    marked = CHATML.replace(
        "message['content'] +", "'' }}{% generation %}{{ message['content'] }}{% endgeneration %}{{ '' +"
    )
    assert marked != CHATML
    assert render(standin("smollm2", marked), [QUESTION], add_generation_prompt=True) == render(
        standin("smollm2"), [QUESTION], add_generation_prompt=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STANDINS)
def test_our_rendering_and_tokens_equal_those_of_transformers(name: str, tmp_path: Path, record: dict):
    from transformers import AutoTokenizer

    folder = write_standin(tmp_path, name)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    answer = {"role": "assistant", "content": f"  {ANSWER} \n"}
    for messages in (
        [QUESTION],
        [SYSTEM, QUESTION],
        opening_messages(CONSTITUTION, "pt", record["prompt"], EARLIER),
        [*opening_messages(CONSTITUTION, "pt", record["prompt"], EARLIER), answer],
    ):
        given = fold_system(messages) if name == "gemma-2" and messages[0]["role"] == "system" else messages
        for prompt in (True, False):
            text = render(ours, messages, add_generation_prompt=prompt)
            # the date is fixed here, and can be given to transformers
            assert text == theirs.apply_chat_template(
                given, tokenize=False, add_generation_prompt=prompt, date_string="26 Jul 2024"
            )
            assert ours(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
    if name == "gemma-2":
        with pytest.raises(Exception, match="System role not supported"):
            theirs.apply_chat_template([SYSTEM, QUESTION], tokenize=False)
