"""`noesis serve|chat|connect` on a run directory, as commands; which of a run's files they take; its live judge."""

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
from helpers.tiny_gguf import write_reciter
from noesis.core.config import load_config
from noesis.core.errors import RunError, UsageError
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.pipeline.served.files import certified_gguf, served_files
from noesis.pipeline.served.live_judge import AnswerOpinion, LiveJudge, format_opinion
from noesis.release.parity.certificate import AnswerAgreement, Certificate, Comparison, Divergence, Tolerance
from noesis.run.directory import load_run

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
    assert served_files(load_run(run), base=base).adapter is None  # the stage does not list it
    entry = {"bytes": adapter.stat().st_size, "sha256": sha256_file(adapter)}
    change(run, lambda stage: stage["outputs"].update({f"gguf/{adapter.name}": entry}))
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
        assert "noesis, noesis-base" in said and "it asks for your key" in said and KEY not in said
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
        until("you ›")
        for _ in range(2):
            os.write(screen, b"hello\n")
            until("word3")
            os.write(screen, b"\x03")
            until("(stopped)")
            until("you ›")
        os.write(screen, b"/quit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    finally:
        os.close(screen)


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
