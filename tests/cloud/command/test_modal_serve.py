"""examples/modal_serve.py: what vLLM is started with, how long that took, and that a dead server is noticed at once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from helpers.project import ROOT

modal = pytest.importorskip("modal")
pytestmark = pytest.mark.timing

SERVER = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): ...
time.sleep(float(sys.argv[2]))
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("modal_serve")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_what_vllm_is_started_with(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no adapter"):
        example.command("adapter", tmp_path)
    for name in ("epoch_2", "epoch_10"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert f"noesis={tmp_path}/checkpoints/epoch_10" in example.command("adapter", tmp_path)
    chosen = {"stages": {"choose": {"result": {"adapter": "epoch_2"}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(chosen), encoding="utf-8")
    assert f"noesis={tmp_path}/checkpoints/epoch_2" in example.command("adapter", tmp_path)
    merged = example.command("merged")
    assert merged[merged.index("--middleware") + 1] == "modal_serve_guard.KeyGuard"
    assert "--enable-sleep-mode" not in merged
    assert merged[merged.index("--served-model-name") + 1] == "noesis"
    assert "NOESIS_API_KEY" not in " ".join(merged)
    with pytest.raises(SystemExit, match="choose merged or adapter"):
        example.command("both")


@pytest.mark.parametrize(
    ("kind", "path", "headers", "passes"),
    [
        ("http", "/health", [], True),
        ("lifespan", "", [], True),
        ("http", "/v1/models", [(b"authorization", b"Bearer the-key")], True),
        ("http", "/v1/models", [], False),
        ("http", "/invocations", [(b"authorization", b"Bearer another")], False),
        ("http", "/invocations", [(b"authorization", b"Bearer the-key")] * 2, False),
        ("http", "/pause", [], False),
        ("http", "/wake_up", [(b"authorization", b"the-key")], False),
        ("http", "/health/../sleep", [], False),
        ("websocket", "/v1/realtime", [], False),
        ("websocket", "/health", [], False),
    ],
)
def test_the_key_is_asked_for_at_every_address(
    monkeypatch: pytest.MonkeyPatch, kind: str, path: str, headers: list, passes: bool
) -> None:
    """vLLM asks for it under /v1 and a few others only: /invocations generates without."""
    monkeypatch.setenv("VLLM_API_KEY", "the-key")
    passed, sent = [], []

    async def app(scope: dict, receive: object, send: object) -> None:
        passed.append(scope["path"])

    async def send(message: dict) -> None:
        sent.append(message.get("status", message.get("code")))

    guard = load("modal_serve_guard").KeyGuard(app)
    asyncio.run(guard({"type": kind, "path": path, "headers": headers}, None, send))
    assert (passed == [path], sent[:1]) == ((True, []) if passes else (False, [401 if kind == "http" else 1008]))


def test_a_snapshot_is_taken_of_a_server_that_has_answered_and_sleeps(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.setenv("NOESIS_SNAPSHOT", "1")
    example = load("modal_serve")
    assert "--enable-sleep-mode" in example.command("merged")
    asked: list[str] = []
    monkeypatch.setattr(example, "start_server", lambda: asked.append("started") or "server")
    monkeypatch.setattr(example, "post", lambda path, body=None: asked.append(path))
    monkeypatch.setattr(example, "leave_with", asked.append)
    monkeypatch.setattr(example.weights, "commit", lambda: asked.append("committed"))
    assert isinstance(example.Server, modal.Cls) and not hasattr(example, "serve")
    example.wake(example.start_asleep())
    assert asked == ["started", "/v1/completions", "committed", "/sleep?level=1", "/wake_up", "server"]


def test_a_cold_start_is_measured(example: ModuleType, port: int) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), "1.0"])
    try:
        assert 1.0 <= example.wait_until_ready(server, port) < 30
    finally:
        server.kill()
        server.wait()


def test_a_server_that_dies_is_noticed_within_seconds(example: ModuleType, port: int) -> None:
    """Its container waited a quarter of an hour for it, on a GPU."""
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with code 3"):
        example.wait_until_ready(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]), port)
    assert time.monotonic() - started < 10
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(RuntimeError, match="did not answer"):
        example.wait_until_ready(hung, port, starts_s=0.6)
    assert hung.wait(10) != 0


@pytest.mark.slow
def test_a_container_leaves_with_its_server(port: int, tmp_path: Path) -> None:
    """The function as it runs in a container, with a server that answers and dies two seconds later."""
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!{sys.executable}\nimport os, sys, threading\n", encoding="utf-8")
    with vllm.open("a", encoding="utf-8") as f:
        f.write("threading.Timer(2.0, lambda: os._exit(9)).start()\n")
        f.write("sys.argv = ['', sys.argv[sys.argv.index('--port') + 1], '0']\n" + SERVER)
    vllm.chmod(vllm.stat().st_mode | stat.S_IXUSR)
    code = f"import modal_serve as m, time; m.PORT = {port}; m.serve.local(); time.sleep(60)"
    env = os.environ | {"PYTHONPATH": str(ROOT / "examples"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"NOESIS_API_KEY": "k" * 20}, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, time.monotonic() - started < 45) == (1, True), done.stderr
    assert "ready after" in done.stdout
    assert "vLLM ended with code 9" in done.stdout
