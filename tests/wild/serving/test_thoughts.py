"""Thoughts as models leave them in their replies: no reader takes one for the answer, and no example holds one."""

from __future__ import annotations

import time

import pytest

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.llm.clients.chat_reply import read_chat_reply
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.clients.thoughts import has_thought_mark, without_thought
from noesis.synthesis.reply_checks import Work, clean_reply, reply_problem

ANSWER = "Courage is to stay where one is afraid."
THOUGHT = 'The user asks: what is "courage"? I can write `x` and {"score": 1}.'
MARKS = {
    "Qwen and DeepSeek": "<think>{}</think>",
    "in upper case": "<THINK>{}</THINK>",
    "with attributes": '<think duration="3">{}</think>',
    "Anthropic's": "<thinking>{}</thinking>",
    "reasoning": "<reasoning>{}</reasoning>",
    "thought": "<thought>{}</thought>",
    "Seed-OSS": "<seed:think>{}</seed:think>",
    "MiniMax": "<mm:think>{}</mm:think>",
    "LongCat": "<longcat_think>{}</longcat_think>",
    "Magistral": "[THINK]{}[/THINK]",
    "Kimi": "◁think▷{}◁/think▷",
    "OpenThinker": "<|begin_of_thought|>{}<|end_of_thought|>",
    "Cohere": "<|START_THINKING|>{}<|END_THINKING|>",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "gpt-oss, with JSON": "<|channel|>analysis<|message|>{}<|channel|>final <|constrain|>json<|message|>",
    "gpt-oss, two channels": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>commentary<|message|>a"
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "gpt-oss, under a grammar": "<|channel|>analysis<|message|>{}<|end|>",
    "Gemma": "<|channel>thought\n{}<channel|>",
    "MedGemma": "<unused94>thought\n{}<unused95>",
    "Risuai's": "<Thoughts>{}</Thoughts>",
    "gpt-oss without its tokens": "analysis{}assistantfinal",
    "İ, which is two letters in lower case": "<think>İİİİ{}</think>",
}  # fmt: skip
ENDS = ("</think>", "</seed:think>", "</thinking>", "[/THINK]", "◁/think▷", "<|end|><|start|>assistant<|channel|>final<|message|>")  # fmt: skip
REPLIES = {
    **{name: marks.format(THOUGHT) for name, marks in MARKS.items()},
    "on lines of their own": f"\n<think>\n{THOUGHT}\n</think>\n\n",
    "an empty one": "<think>\n\n</think>\n\n",
    "two": f"<think>{THOUGHT}</think>\n<think>{THOUGHT}</think>",
    "ended twice": f"<think>{THOUGHT}</think></think>",
    **{f"no beginning: {end}": THOUGHT + end for end in ENDS},
    **{f"no beginning, on its own line: {end}": f"{THOUGHT}\n{end}\n\n" for end in ENDS},
    "the mark is spoken of first": 'I must close with `</think>` or "</think>" (</think>).\n</think>\n',
    "no thought but its end": "</think>\n\n",
}


@pytest.mark.parametrize("thought", REPLIES.values(), ids=REPLIES)
def test_the_answer_is_what_follows_the_thoughts(thought: str):
    body = {"choices": [{"message": {"content": thought + ANSWER}, "finish_reason": "stop"}]}
    judged = read_chat_reply(body, logprobs=False, max_tokens=999).answer
    assert judged.strip() == without_thought(thought + ANSWER).strip() == clean_reply(thought + ANSWER) == ANSWER
    assert clean_reply(f"{thought}{ANSWER}") == clean_reply(judged)  # once more takes nothing away


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_a_thought_that_does_not_end_leaves_no_answer(marks: str):
    begin, _ = marks.split("{}")
    if begin != "analysis":  # which is a word
        assert without_thought(begin + THOUGHT) == clean_reply(begin + THOUGHT) == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("The tag </think> ends a thought.", id="a mark in a sentence"),
        pytest.param("Write `<think>` first and `x</think>` last.", id="marks in code"),
        pytest.param("It begins so: <think>hm</think> and goes on.", id="a thought shown in mid-answer"),
        pytest.param("For example:\n```\nhm\n</think>\n\n7\n```\nThat is all.", id="a block of code"),
        pytest.param('{"reason": "it says hm</think>7", "score": 1}', id="a verdict that quotes a mark"),
        pytest.param('{"reason": "it says \\"hm</think>7\\"", "score": 1}', id="a verdict that quotes a quotation"),
        pytest.param("The mark (</think>) and “</think>”.", id="marks in brackets and quotation marks"),
        pytest.param("Use `<think>draft</think>` as the example t", id="both marks in code"),
        pytest.param("It is 7.<|end|>", id="the end of a turn that a server left"),
        pytest.param("[THINKING] of it, analysis is the final word of an assistant final.", id="words like marks"),
        pytest.param("analysis of what the assistantfinal says", id="words of channels"),
    ],
)
def test_a_text_that_speaks_of_thoughts_stays(text: str):
    assert without_thought(text) == text


def test_what_still_holds_a_mark_is_no_example():
    constitution, work = (
        load_constitution(ROOT / "data" / "constitution.yaml"),
        Work("initial", "What is courage?", "en"),
    )
    good = f"{ANSWER} It asks for judgement, since who knows no fear has nothing to overcome."
    assert reply_problem(ModelReply(good, "stop", 1, 1), good, work, constitution) is None
    for text in (f"{good}\n<think>hm</think>", f"{good} <reasoning>hm", f"{good} [/THINK] 7", f"{good} ◁think▷"):
        assert has_thought_mark(clean_reply(text))
        found = reply_problem(ModelReply(text, "stop", 1, 1), clean_reply(text), work, constitution)
        assert found == "contains a thought"


UNITS = ("</think", "x </think> ", "<think>", "<think ", "<think>a</think>", "`", '"', "\\", "\n ", "\n", " ",
         "<|channel|>", "<|start|>assistant", "analysisA", "<|channel|>final", "assistant", "◁")  # fmt: skip


@pytest.mark.timing
@pytest.mark.parametrize("unit", UNITS)
def test_the_time_is_linear_in_the_reply(unit: str):
    started = time.process_time()
    for first in ("", " " * 200_000 + "a ", "analysisA", "<think>"):
        without_thought(first + unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5
