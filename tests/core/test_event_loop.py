"""Signals while an event loop runs: the main task is cancelled and cleans up; always 130 or 143, never a traceback."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers import judge_server as play
from helpers.project import ROOT
from noesis.core.event_loop import AsyncRunner, run_async
from noesis.core.signals import Terminated, raise_terminated

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@pytest.fixture(autouse=True)
def handlers():
    """SIGINT and SIGTERM as the command line has them; a shell's background job ignores SIGINT."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, raise_terminated),
        signal.SIGALRM: signal.getsignal(signal.SIGALRM),
    }
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def kill_soon(number: int, seconds: float = 0.05) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_cancels_the_main_task_and_is_raised_after_its_clean_up(number: signal.Signals):
    done = []

    async def main() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            done.append("cleaned up")

    kill_soon(number)
    with pytest.raises(RAISED[number]):
        run_async(main())
    assert done == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is raise_terminated


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_that_the_work_outlives_is_raised_all_the_same(number: signal.Signals):
    async def swallows() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "done"
        return "never"

    async def fails() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError("in the clean-up")

    async def blocks() -> str:
        time.sleep(0.2)  # it arrives in plain code
        return "done"

    for main in (swallows, fails, blocks):
        kill_soon(number)
        with pytest.raises(RAISED[number]):
            run_async(main())


def test_without_a_signal_it_is_asyncio_run():
    async def main(fail: bool) -> int:
        await asyncio.sleep(0)
        if fail:
            raise ValueError("as it is")
        return 7

    assert run_async(main(False)) == 7
    with pytest.raises(ValueError, match="as it is"):
        run_async(main(True))


def test_a_loop_goes_on_after_an_interrupted_run():
    async def wait(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    with AsyncRunner() as runner:
        kill_soon(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            runner.run(wait(30))
        assert runner.run(wait(0)) == "done"


def test_the_echo_of_a_sigterm_before_the_loop_stops_it():
    """`raise_terminated` raises again after 3 s; in the loop that must not be from the handler."""
    with pytest.raises(Terminated):
        raise_terminated(signal.SIGTERM, None)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Terminated):
        run_async(asyncio.sleep(30))


def test_outside_the_main_thread_it_runs_all_the_same():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_async(asyncio.sleep(0, "done"))))
    thread.start()
    thread.join()
    assert found == ["done"]


def test_an_ignored_sigint_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kill_soon(signal.SIGINT)
    assert run_async(asyncio.sleep(0.2, "done")) == "done"


TWICE = """
import asyncio, signal, time
from noesis.core.event_loop import run_async
signal.signal(signal.SIGINT, signal.default_int_handler)
async def main():
    try:
        print("running", flush=True)
        await asyncio.sleep(30)
    finally:
        print("cleaning", flush=True)
        time.sleep(30)
run_async(main())
"""


@pytest.mark.parametrize("number", CODES)
def test_a_second_signal_ends_it_at_once(number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None
    for line in ("running", "cleaning"):
        assert process.stdout.readline().strip() == line
        process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (CODES[number], "stopped at once")


# One process, forked for each kill: what a command imports costs seconds, and the moment is random all the same.
COMMAND = r"""
import os, signal, sys, tempfile
sys.path.insert(0, {src!r})
from noesis.cli import run_command
from noesis.core.signals import leave_process
import noesis.tribunal.calibration.calibrate, noesis.llm.clients.openai_client, httpx2
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.environ["NOESIS_CACHE"] = tempfile.mkdtemp(dir={cache!r})
        print("pid", os.getpid(), flush=True)
        leave_process(run_command({command!r}))
    _, status = os.waitpid(child, 0)
    print("\ncode", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.slow
def test_kills_at_random_moments_end_with_the_signals_code(project: Path, tmp_path: Path):
    """It ended with "Attempted to exit a cancel scope …" or "Fatal write error on socket transport", and code 1 or never."""
    from noesis.tribunal.suite import JudgePair

    folder = project / "data" / "tribunal" / "judge_bench"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        JudgePair(
            id=f"p{i}",
            attack="x",
            language="en",
            split="dev",
            prompt="q",
            good=f"quality9 answer {i}",
            bad=f"quality2 answer {i}",
            judges=("veritas",),
        )
        for i in range(200)
    ]
    (folder / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs), encoding="utf-8")
    draw = random.Random(0)

    def slow_and_uneven(asked: play.Asked) -> play.Raw:
        return play.Raw(text=play.verdict(asked, asked.quality), wait=draw.random() * 0.05)

    with play.JudgeServer(slow_and_uneven) as server:
        spec = f"openai:{server.url}:scripted"
        command = ["tribunal", "calibrate", "--judge", spec, "--project", str(project)]
        source = COMMAND.format(src=str(ROOT / "src"), cache=str(tmp_path), command=command)
        parent = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert parent.stdin is not None and parent.stdout is not None and parent.stderr is not None

        def told(what: str) -> int:
            """The number after `what`; progress may be printed before it."""
            for line in parent.stdout:
                if line.startswith(what):
                    return int(line.split()[1])
            raise AssertionError(parent.stderr.read())

        codes = []
        for i in range(30):
            number, asked = list(CODES)[i % 2], len(server.requests)
            print("go", file=parent.stdin, flush=True)
            child = told("pid")
            wanted, until = asked + 1 + draw.randrange(40), time.monotonic() + 60
            while len(server.requests) < wanted and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
            os.kill(child, number)
            codes.append((number, told("code")))
        parent.stdin.close()
        errors = parent.stderr.read()
        assert parent.wait(timeout=20) == 0
    assert [(number, code) for number, code in codes if code != CODES[number]] == [], errors
    assert "Traceback" not in errors and "never awaited" not in errors and "Fatal" not in errors, errors


def test_every_event_loop_is_run_here():
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "event_loop.py":
            assert "asyncio.run(" not in text and "asyncio.Runner(" not in text, file
