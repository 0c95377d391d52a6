"""The server under load: 8 parallel streams for 10 minutes, a third of the clients killed in mid-stream; memory,
descriptors and threads bounded.

    python benchmarks/serve_load.py RUN [--minutes 10] [--streams 8] [--out FILE]
    python benchmarks/serve_load.py --model FILE.gguf [--minutes 1]

The server is a process of its own (`noesis serve`), the clients are threads with bare sockets: a kill is a TCP reset,
as of a process that died. It fails (exit code 1) if a stream hangs, an answer that was not killed is not whole, the
memory or the number of open files grows between the second quarter and the end, or the server does not stop within its
time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

KEY = "noesis-load-key-0123456789"
SILENCE_S = 60.0  # without a byte: the stream hangs
GROWTH_BYTES, GROWTH_FILES = 40e6, 8  # between the second quarter and the end
PROMPTS = [
    "O que é a coragem?",
    "What do we owe to strangers?",
    "A promessa feita sob ameaça obriga?",
    "Is it wrong to lie to save a friend?",
]
PROGRAM = """
import asyncio, sys
from pathlib import Path
from noesis.constitution.document import SystemPrompt
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles, Server, Settings
limits = Limits(parallel=int(sys.argv[3]), context=2048, max_tokens=256)
settings = Settings(sys.argv[2], SystemPrompt(pt="Responda.", en="Answer."), "en", port=0, limits=limits)
server = Server(ModelFiles(Path(sys.argv[1]), None), settings)
asyncio.run(server.run(lambda: print("Serving noesis at " + server.url + "/v1", flush=True)))
server.free()
"""


@dataclass
class Tally:
    """What the clients saw. first_s, token_s: seconds to the first token, and of each later one."""

    whole: int = 0
    killed: int = 0
    busy: int = 0
    failed: list[str] = field(default_factory=list)
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def client(port: int, tally: Tally, end: float, seed: int, most: int) -> None:
    """Streams one after another until `end`; a third is killed at a random place."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        tokens = rng.randint(8, most)
        die_after = rng.randint(1, tokens) if rng.random() < 1 / 3 else None
        try:
            outcome = one(port, rng, tokens, die_after, tally)
        except (OSError, AssertionError) as error:
            outcome = f"{type(error).__name__}: {error}"
        with tally.lock:
            if outcome == "whole":
                tally.whole += 1
            elif outcome == "killed":
                tally.killed += 1
            elif outcome == "busy":
                tally.busy += 1
            else:
                tally.failed.append(outcome)
        if outcome == "busy":
            time.sleep(0.2)


def one(port: int, rng: random.Random, tokens: int, die_after: int | None, tally: Tally) -> str:
    """One stream."""
    body = {
        "model": "noesis",
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0.8,
        "messages": [{"role": "user", "content": rng.choice(PROMPTS)}],
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
        f"{KEY}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    sock = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S)
    started = time.monotonic()
    received, seen = b"", 0
    try:
        sock.sendall(head.encode() + data)
        while piece := sock.recv(65536):
            received += piece
            now = received.count(b'"delta":{"content":')
            if now and not seen:
                with tally.lock:
                    tally.first_s.append(time.monotonic() - started)
            with tally.lock:
                tally.tokens += now - seen
            seen = now
            if die_after is not None and seen >= die_after:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "killed"
        if received.startswith(b"HTTP/1.1 429"):
            return "busy"
        assert received.startswith(b"HTTP/1.1 200"), received[:200]
        assert b"data: [DONE]" in received, f"not whole: …{received[-200:]!r}"
        return "whole"
    finally:
        sock.close()


def watch(process: psutil.Process, samples: list[tuple[float, int, int, int]], end: float) -> None:
    """(time, resident bytes, open files, threads), every second."""
    while time.monotonic() < end and process.is_running():
        with process.oneshot():
            samples.append((time.monotonic(), process.memory_info().rss, process.num_fds(), process.num_threads()))
        time.sleep(1.0)


def started(arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """The server's process, and its port."""
    if arguments.model:
        command = [sys.executable, "-c", PROGRAM, str(arguments.model), KEY, str(arguments.streams)]
    else:
        command = [
            sys.executable,
            "-m",
            "noesis",
            "serve",
            str(arguments.run),
            "--port",
            "0",
            "--parallel",
            str(arguments.streams),
            "--context",
            "2048",
        ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NOESIS_API_KEY": KEY})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving"):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, int(line.rsplit(":", 1)[1].split("/")[0])
    raise SystemExit(f"error: the server ended with {process.wait()} before it served")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--model", type=Path, help="a GGUF file instead of a run")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.run is None) == (arguments.model is None):
        parser.error("name a run, or a file with --model")
    process, port = started(arguments)
    begun = time.monotonic()
    end = begun + 60 * arguments.minutes
    tally, samples = Tally(), list[tuple[float, int, int, int]]()
    threads = [
        threading.Thread(target=client, args=(port, tally, end, seed, arguments.tokens))
        for seed in range(arguments.streams)
    ]
    threads.append(threading.Thread(target=watch, args=(psutil.Process(process.pid), samples, end)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * arguments.minutes + 2 * SILENCE_S)
    hung = sum(thread.is_alive() for thread in threads)
    seconds = time.monotonic() - begun
    stopping = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        code = -9
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:] or samples
    growth = [statistics.median(s[i] for s in late) - statistics.median(s[i] for s in early) for i in (1, 2, 3)]
    firsts = sorted(tally.first_s) or [float("nan")]
    result = {
        "seconds": round(seconds, 1),
        "streams": arguments.streams,
        "whole": tally.whole,
        "killed": tally.killed,
        "busy": tally.busy,
        "failed": len(tally.failed),
        "failures": tally.failed[:5],
        "hung": hung,
        "tokens_per_s": round(tally.tokens / seconds, 1),
        "first_token_s": {
            "median": round(statistics.median(firsts), 3),
            "p95": round(firsts[int(0.95 * (len(firsts) - 1))], 3),
            "max": round(firsts[-1], 3),
        },
        "resident_mb": {"growth": round(growth[0] / 1e6, 2), "peak": round(max(s[1] for s in samples) / 1e6, 1)},
        "open_files": {"growth": growth[1], "peak": max(s[2] for s in samples)},
        "threads": {"growth": growth[2], "peak": max(s[3] for s in samples)},
        "stopped_in_s": round(time.monotonic() - stopping, 2),
        "exit_code": code,
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sound = (
        not tally.failed
        and not hung
        and code == 0
        and growth[0] <= GROWTH_BYTES
        and growth[1] <= GROWTH_FILES
        and tally.whole > 0
    )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
