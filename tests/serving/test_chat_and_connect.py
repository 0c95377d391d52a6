"""A conversation in the terminal, what `noesis connect` prints, and how it compares answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.tiny_gguf import write_reciter, write_switch
from noesis.core.errors import UsageError
from noesis.llm.clients.chat_client import Completion, LLMClient
from noesis.llm.llama_cpp import LlamaServer
from noesis.serving.chat import ChatSession, answer_function, chat, fit_context
from noesis.serving.connect import TARGETS, Endpoint, instructions
from noesis.serving.probe import answer_distance, same_model_verdict

pytestmark = pytest.mark.timing


def test_base_and_tuned_of_one_file_in_the_chat(tmp_path: Path):
    plain, tuned = ["plain", " words"], ["[ANÁLISE INTERNA]", " hm ", "[FIM DA ANÁLISE]", "tuned", " speech"]
    base = write_reciter(tmp_path / "base.gguf", plain, other=tuned)
    backend = LlamaServer(base, adapter=write_switch(tmp_path / "adapter.gguf", plain, tuned), parallel=1, context=512)
    client = LLMClient(backend.url + "/v1", backend.key, "noesis", socket=backend.socket)
    answer = answer_function(client, lambda: client, max_tokens=40, temperature=0.0, scales=True)
    shown: list[str] = []
    messages = [{"role": "user", "content": "Hello"}]
    assert [answer(messages, of_base, shown.append) for of_base in (False, True, False)] == [
        "tuned speech",
        "plain words",
        "tuned speech",
    ]
    assert "".join(shown) == "tuned speechplain wordstuned speech"
    client.close()
    assert backend.stop(5.0)


def talk(answer=None, judge=None) -> ChatSession:
    def say(messages, base, show):
        show("yes")
        return "yes"

    return ChatSession(answer or say, judge or (lambda said, text: [f"{len(said)} {text}"]), "system", 100)


def test_ctrl_c_stops_an_answer_and_not_the_chat(capsys):
    def broken(messages, base, show):
        show("half an")
        raise KeyboardInterrupt

    typed = iter(["one", KeyboardInterrupt, "two", "/quit"])

    def read(prompt: str) -> str:
        value = next(typed)
        if value is KeyboardInterrupt:
            raise KeyboardInterrupt
        return value

    t = talk(broken)
    chat(t, read)
    assert [m["content"] for m in t.history] == ["system", "one", "half an", "two", "half an"]
    assert capsys.readouterr().out.count("(stopped)") == 2


def test_a_failed_answer_leaves_the_conversation_as_it_was(capsys):
    def refuse(messages, base, show):
        raise UsageError("no")

    t = talk(refuse)
    typed = iter(["one", "/quit"])
    chat(t, lambda prompt: next(typed))
    assert len(t.history) == 1 and "no" in capsys.readouterr().out


def test_hostile_answers_do_not_command_the_terminal(capsys):
    def evil(messages, base, show):
        show("\x1b[2Jgone")
        return "\x1b[2Jgone"

    t = talk(evil)
    t.turn("hello")
    assert "\x1b" not in capsys.readouterr().out


def test_long_conversations_keep_the_system_prompt_and_the_end():
    history = [
        {"role": "system", "content": "s"},
        *[{"role": "user", "content": f"{i} " + "x" * 1000} for i in range(30)],
    ]
    kept = fit_context(history, 400)
    assert kept[0] == history[0] and kept[-1] == history[-1] and 1 < len(kept) < 10


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_printed_can_be_used_and_no_value_breaks_out(target: str, tmp_path: Path):
    evil = "k'; touch owned; echo '\"$(touch owned)`touch owned`\\"
    text = instructions(target, Endpoint("http://127.0.0.1:8017/v1", evil, evil))
    if target == "python":
        assert compile(text, "x", "exec") and repr(evil) in text
        return
    script = (
        text + '\nprintf %s "$NOESIS_API_KEY"' if target == "env" else "docker() { printf '%s\\n' \"$@\"; }\n" + text
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert evil in done.stdout and not list(tmp_path.iterdir()), done.stderr
    if target == "docker":
        assert "NOESIS_BASE_URL=http://host.docker.internal:8017/v1" in done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_key_in_the_environment_is_not_printed(target: str):
    assert "NOESIS_API_KEY" in instructions(target, Endpoint("https://x.example/v1", "noesis", None))


def entry(token: str, logprob: float, **others: float) -> dict:
    return {
        "token": token,
        "bytes": list(token.encode()),
        "logprob": logprob,
        "top_logprobs": [{"token": t, "bytes": list(t.encode()), "logprob": p} for t, p in others.items()],
    }


def test_the_probe_compares_as_far_as_both_stand_before_the_same_text():
    ours = [Completion("abx", "stop", logprobs=[entry("a", -0.1), entry("b", -0.2), entry("x", -0.3)])]
    same = [Completion("abx", "stop", logprobs=[entry("a", -0.1), entry("b", -0.2), entry("x", -0.3)])]
    tie = [Completion("acy", "stop", logprobs=[entry("a", -0.2), entry("c", -0.3, b=-0.4), entry("y", -5.0)])]
    assert answer_distance(ours, same).mean == 0 and answer_distance(ours, same).positions == 3
    near = answer_distance(ours, tie)
    assert (near.positions, near.mean, near.same) == (2, pytest.approx(0.15), pytest.approx(1 / 3))
    assert same_model_verdict(answer_distance(ours, same), near)[0]
    assert not same_model_verdict(near, answer_distance(ours, same))[0]  # the base is nearer
    far = answer_distance(ours, [Completion("zzz", "stop", logprobs=[entry("z", -0.1)])])
    assert far.mean == pytest.approx(8.9) and not same_model_verdict(far, None)[0]
    mute = [Completion("abx", "stop")]
    passed, why = same_model_verdict(answer_distance(ours, mute), None)
    assert passed and "weaker" in why
    assert not same_model_verdict(answer_distance(ours, [Completion("qqq", "stop")]), None)[0]
