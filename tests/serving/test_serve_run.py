"""`noesis serve|chat|connect` on a run directory, as commands; and which of a run's files they take."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.manifest import write_manifest
from helpers.project import ROOT
from helpers.running_server import ANSWER, BASE, KEY
from helpers.tiny_gguf import write_reciter, write_switch
from noesis.core.config import load_config
from noesis.core.errors import RunError, UsageError
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.llm.clients.chat_client import Completion, LLMClient
from noesis.llm.llama_cpp import LlamaServer
from noesis.pipeline.live_judge import AnswerOpinion, LiveJudge, format_opinion
from noesis.pipeline.served_files import certified_gguf, served_files
from noesis.release.parity.certificate import AnswerAgreement, Certificate, Comparison, Divergence, Tolerance
from noesis.run.directory import load_run
from noesis.serving.chat import ChatSession, answer_function, chat, fit_context
from noesis.serving.connect import TARGETS, Endpoint, instructions
from noesis.serving.probe import answer_distance, same_model_verdict

pytestmark = pytest.mark.timing

NAME = "noesis-philosopher-v1"


def comparison(passed: bool) -> Comparison:
    agreement = AnswerAgreement(prompts=1, tokens=1, identical=1, shared=1.0)
    return Comparison(Divergence(0.0, 0.0, 1.0, 0.0), agreement, Tolerance(1.0, 0.0), passed)


def certificate(**files: Comparison) -> Certificate:
    return Certificate(1, 1, "the merged model in float32", 500, 1, 24, merge=None, files=files)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was released: an f16 file that passed, a q8_0 that did not."""
    folder = tmp_path / "run"
    (folder / "data").mkdir(parents=True)
    (folder / "gguf").mkdir()
    shutil.copyfile(ROOT / "data" / "constitution.yaml", folder / "data" / "constitution.yaml")
    file = write_reciter(folder / "gguf" / f"{NAME}-f16.gguf", ANSWER)
    (folder / "config.json").write_text(
        json.dumps(load_config(Project(ROOT), {"training.model": "someone/else"}).model_dump(mode="json")),
        encoding="utf-8",
    )
    outputs = {f"gguf/{file.name}": {"bytes": file.stat().st_size, "sha256": sha256_file(file), "mtime_ns": 0}}
    stage = {
        "status": "done",
        "result": certificate(f16=comparison(True), q8_0=comparison(False)).to_json(),
        "outputs": outputs,
    }
    write_manifest(folder, output_name=NAME, stages={"gguf": stage})
    return folder


def change(run: Path, edit) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    edit(manifest["stages"]["gguf"])
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_only_a_certified_file_is_served(run: Path):
    assert certified_gguf(load_run(run)).name == f"{NAME}-f16.gguf"
    with pytest.raises(RunError, match="no q8_0 GGUF file that was shown"):
        certified_gguf(load_run(run), "q8_0")
    (run / "gguf" / f"{NAME}-f16.gguf").write_bytes(b"GGUF of another")
    with pytest.raises(RunError, match="changed since it was certified"):
        certified_gguf(load_run(run))
    change(run, lambda stage: stage["result"]["files"]["f16"].update(passed=False))
    with pytest.raises(RunError, match="noesis gguf"):
        certified_gguf(load_run(run))


def test_base_and_adapter_are_preferred_where_the_adapter_was_certified(run: Path, tmp_path: Path, capsys):
    base, adapter = tmp_path / "base.gguf", run / "gguf" / f"{NAME}-adapter.gguf"
    adapter.write_bytes(b"GGUF")
    assert served_files(load_run(run), base=base).adapter is None  # it has no certificate
    change(run, lambda stage: stage["result"].update(adapter=comparison(True).to_json()))
    files = served_files(load_run(run), base=base)
    assert (files.tuned, files.base, files.adapter) == (None, base, adapter)
    assert served_files(load_run(run), base=base, quant="f16").tuned is not None
    assert (
        served_files(load_run(run)).tuned is not None and "--base" in capsys.readouterr().out
    )  # without the base the adapter is of no use


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "NOESIS_API_KEY": KEY,
        "NOESIS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def noesis(tmp_path: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "noesis", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=120,
        env=environment(tmp_path),
    )


@contextmanager
def served(tmp_path: Path, run: Path, *more: str):
    """`noesis serve` as a process; its base URL and what it printed."""
    command = [sys.executable, "-m", "noesis", "serve", str(run), "--port", "0", *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(tmp_path)
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Try"):
                break
        found = [line for line in lines if line.startswith("Serving")]
        assert found, lines
        yield found[0].split(" at ")[1].strip(), "".join(lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert process.stdout.read().endswith("stopped\n")
    finally:
        process.kill()


@pytest.mark.slow
def test_the_commands(run: Path, tmp_path: Path):
    base = write_reciter(tmp_path / "base.gguf", BASE)
    with served(tmp_path, run, "--base", str(base), "--ui") as (url, said):
        assert "noesis, noesis-base" in said and f"/#key={KEY}" in said
        taken = noesis(tmp_path, "serve", str(run), "--port", url.rsplit(":", 1)[1].split("/")[0])
        assert taken.returncode == 2 and "is in use" in taken.stderr
        for address in (url, url + "/"):
            proved = noesis(tmp_path, "connect", str(run), "--probe", "--base-url", address, "--base", str(base))
            assert proved.returncode == 0, proved.stderr
            assert "is the model of" in proved.stdout
        other = noesis(
            tmp_path,
            "connect",
            str(run),
            "--probe",
            "--base-url",
            url,
            "--base",
            str(base),
            "--model",
            "noesis-base",
            "--json",
        )
        assert (
            other.returncode == 1
            and "does not answer as the model" in other.stderr
            and json.loads(other.stdout)["same"] is False
        )
    gone = noesis(tmp_path, "connect", str(run), "--probe", "--base-url", url)
    assert gone.returncode == 1 and "can't be reached" in gone.stderr and "Traceback" not in gone.stderr
    for arguments, code in (
        (["connect", str(run), "--target", "rust"], 2),
        (["serve", str(run), "--context", "300"], 2),
        (["serve", str(run), "--host", "no.such.host.invalid"], 2),
    ):
        assert (done := noesis(tmp_path, *arguments)).returncode == code and "Traceback" not in done.stderr


@pytest.mark.slow
def test_chat_as_a_command(run: Path, tmp_path: Path):
    base, saved = write_reciter(tmp_path / "base.gguf", BASE), tmp_path / "talk.md"
    typed = f"/judge\nWhat is courage?\n/base\n/judge\n/save {saved}\n/save {saved}\n/what\n/reset\n/judge\n"
    done = noesis(tmp_path, "chat", str(run), "--base", str(base), "--language", "en", stdin=typed)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "noesis › Courage is knowledge." in out and "base › The base speaks plainly." in out and "think" not in out
    assert (
        "offline screen (not a judge)" in out
        and "exists already" in out
        and out.count("the conversation is still empty") == 2
    )
    assert saved.read_text().count("## ") == 3 and "The base" not in saved.read_text()


@pytest.mark.slow
def test_ctrl_c_in_a_real_terminal(run: Path, tmp_path: Path):
    """A pseudo-terminal turns the key into a signal while llama.cpp streams; the next answer comes as if nothing had been."""
    import pty

    file = run / "gguf" / f"{NAME}-f16.gguf"
    write_reciter(file, [f" word{i}" for i in range(40)], forever=True)
    change(
        run,
        lambda stage: stage.update(
            outputs={f"gguf/{file.name}": {"bytes": file.stat().st_size, "sha256": sha256_file(file)}}
        ),
    )
    command = [sys.executable, "-m", "noesis", "chat", str(run), "--max-tokens", "2048"]
    process, screen = pty.fork()
    if process == 0:
        os.execve(sys.executable, command, environment(tmp_path))
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([screen], [], [], 60)[0], f"{text!r} did not come; last seen: {seen[-300:]!r}"
            seen += os.read(screen, 65536).decode(errors="replace")
        seen = seen.split(text, 1)[1]

    try:
        until("you › ")
        for _ in range(2):
            os.write(screen, b"hello\n")
            until("word3")
            os.write(screen, b"\x03")
            until("(stopped)")
            until("you › ")
        os.write(screen, b"/quit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    finally:
        os.close(screen)


def test_base_and_tuned_of_one_file_in_the_chat(tmp_path: Path):
    plain, tuned = ["plain", " words"], ["[ANÁLISE INTERNA]", " hm ", "[FIM DA ANÁLISE]", "tuned", " speech"]
    base = write_reciter(tmp_path / "base.gguf", plain, other=tuned)
    backend = LlamaServer(base, adapter=write_switch(tmp_path / "adapter.gguf", plain, tuned), parallel=1, context=512)
    client = LLMClient(backend.url + "/v1", backend.key, "noesis")
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


def test_without_a_judge_the_screen_speaks_and_says_so(run: Path):
    import asyncio

    from noesis.constitution.document import load_constitution

    bar = LiveJudge(load_run(run), Project(ROOT), load_constitution(run / "data" / "constitution.yaml"))
    heard = asyncio.run(bar.judge([{"role": "user", "content": "What is courage?"}], "the the the " * 40, "en"))
    assert heard.band is None and heard.flags
    assert heard.to_json() == {"judge": bar.name, "flags": list(heard.flags), "verdict": None}
    lines = format_opinion(heard)
    assert "not a judge" in lines[0] and "never approves" in lines[1]
    with pytest.raises(UsageError, match="no answer"):
        asyncio.run(bar.judge([{"role": "user", "content": "x"}], " ", "en"))


def test_a_judge_is_heard_on_one_answer(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    from helpers.judge_server import JudgeServer, good, malformed
    from noesis.constitution.document import load_constitution

    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    said = [{"role": "user", "content": "O que é a coragem?"}]
    answer = "quality9 Coragem é decidir com razão diante do medo, e não a falta dele; por isso pergunto de que medo você fala."

    def heard(part) -> AnswerOpinion:
        with JudgeServer(part) as server:
            bar = LiveJudge(
                load_run(run),
                Project(ROOT),
                load_constitution(run / "data" / "constitution.yaml"),
                [f"openai:{server.url}:scripted"],
            )

            async def hear() -> AnswerOpinion:
                try:
                    return await bar.judge(said, answer, "pt")
                finally:
                    await bar.close()

            return asyncio.run(hear())

    opinion = heard(good())
    found = opinion.to_json()
    assert found["verdict"] == "APPROVED" and found["mean"][0] > 0.7 and len(found["said"]) == 3
    assert (
        format_opinion(opinion)[0].startswith("APPROVED (")
        and "an impression, not a trial" in format_opinion(opinion)[0]
    )
    silent = heard(malformed())
    assert silent.to_json()["verdict"] == "UNDECIDED" and silent.to_json()["mean"] is None
    assert "no verdict" in format_opinion(silent)[1]
    with pytest.raises(UsageError, match="not understood"):
        LiveJudge(load_run(run), Project(ROOT), load_constitution(run / "data" / "constitution.yaml"), ["nobody"])


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


@pytest.mark.slow
def test_the_example_for_modal_says_what_vllm_is_started_with(tmp_path: Path):
    pytest.importorskip("modal")
    (tmp_path / "epoch_2").mkdir()
    (tmp_path / "epoch_10").mkdir()
    code = f"import pathlib, modal_serve as m; print(m.command('merged')); print(m.command('adapter', pathlib.Path({str(tmp_path)!r}))); print(m.app.name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT / "examples",
        timeout=120,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    merged, adapter, name = done.stdout.splitlines()
    assert (
        "--served-model-name', 'noesis'" in merged
        and f"noesis={tmp_path}/epoch_10" in adapter
        and name == "noesis-serve"
    )
    assert "NOESIS_API_KEY" not in merged + adapter
