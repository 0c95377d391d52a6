"""Serve the tuned model on Modal: vLLM, OpenAI's protocol, a key from a secret, no cost while nobody uses it.

    modal secret create noesis-serve NOESIS_API_KEY=$(openssl rand -hex 24)
    modal deploy examples/modal_serve.py                              # the merged model on the volume
    NOESIS_SERVE=adapter modal deploy examples/modal_serve.py         # base and adapter: noesis and noesis-base
    NOESIS_SNAPSHOT=1 modal deploy examples/modal_serve.py            # cold starts from a snapshot of the GPU's memory

Then, with the address that it prints, see that it answers as the run's model:

    NOESIS_API_KEY=KEY noesis connect runs/noesis-philosopher-v1 --probe --model noesis --base-url ADDRESS/v1

It reads the volume that `modal run scripts/modal_train.py` wrote: /data/merged/noesis-philosopher-v1, or the adapter
that the run chose. The base's weights, and what vLLM compiles, are on the volume of weights, so that only the first
start downloads and compiles. Snapshots are an alpha feature of Modal: the first starts take longer, later ones restore
the server as it was. vLLM needs its own version of torch, so it has an image of its own and shares nothing with
the project's environment. docs/integrate.md says how to use it. Page: https://modal.com/docs/reference/modal.web_server
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import modal

MINUTES = 60
PORT = 8000
VLLM = "vllm==0.33.0"
STARTS_S = 15 * MINUTES  # longest start: the first downloads the weights and compiles
VOLUME, SECRET, HUGGING_FACE = "noesis-training-data", "noesis-serve", "huggingface-token"
OPTIONS = {  # environment variables when it is deployed, and their defaults
    "NOESIS_SERVE": "merged",  # or adapter
    "NOESIS_BASE": "meta-llama/Llama-3.1-8B-Instruct",  # of the adapter
    "NOESIS_MERGED": "/data/merged/noesis-philosopher-v1",
    "NOESIS_GPU": "L40S",
    "NOESIS_MIN_CONTAINERS": "0",  # 1: always ready, and always paid for
    "NOESIS_SNAPSHOT": "0",
}
options = {name: os.environ.get(name, default) for name, default in OPTIONS.items()}
WHAT, BASE, MERGED = options["NOESIS_SERVE"], options["NOESIS_BASE"], options["NOESIS_MERGED"]
SNAPSHOT = options["NOESIS_SNAPSHOT"] == "1"
GUARD = "/opt/noesis"  # where the server finds modal_serve_guard.py
LONGEST, RANK = 8192, 64  # tokens of a conversation; largest rank of an adapter

app = modal.App("noesis-serve")
weights = modal.Volume.from_name(f"{VOLUME}-weights", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(VLLM)
    .add_local_file(Path(__file__).with_name("modal_serve_guard.py"), f"{GUARD}/modal_serve_guard.py", copy=True)
    .env(
        {
            "HF_HOME": "/weights/huggingface",
            "VLLM_CACHE_ROOT": "/weights/vllm",
            "TRITON_CACHE_DIR": "/weights/triton",
            "FLASHINFER_WORKSPACE_BASE": "/weights/flashinfer",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it is compiled at its first use, and the image has no CUDA compiler
            "VLLM_NO_USAGE_STATS": "1",
            **options,
        }
    )
)
secrets = [modal.Secret.from_name(SECRET, required_keys=["NOESIS_API_KEY"])]
if WHAT == "adapter":
    secrets.append(modal.Secret.from_name(HUGGING_FACE, required_keys=["HF_TOKEN"]))


def command(what: str, run: Path = Path("/data")) -> list[str]:
    """vLLM's command line for the `merged` model, or for the base with the run's `adapter`.

    The key is passed through the environment, never here.
    """
    snapshot = ["--enable-sleep-mode"] if SNAPSHOT else []
    common = [*snapshot, "--middleware", "modal_serve_guard.KeyGuard"]
    common += ["--host", "0.0.0.0", "--port", str(PORT), "--max-model-len", str(LONGEST), "--dtype", "bfloat16"]  # noqa: S104  (inside Modal's container)
    if what == "merged":
        return ["vllm", "serve", MERGED, "--served-model-name", "noesis", *common]
    if what != "adapter":
        raise SystemExit(f"error: NOESIS_SERVE={what!r}: choose merged or adapter")
    lora = ["--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules", f"noesis={chosen_adapter(run)}"]
    return ["vllm", "serve", BASE, "--served-model-name", "noesis-base", *lora, *common]


def chosen_adapter(run: Path) -> Path:
    """The adapter that the run chose; where it has not chosen, that of the last epoch."""
    epochs = sorted(run.glob("checkpoints/epoch_[0-9]*"), key=lambda p: int(p.name.removeprefix("epoch_")))
    if not epochs:
        raise SystemExit(f"error: {run}/checkpoints holds no adapter: run  modal run scripts/modal_train.py  first")
    try:
        name = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]["choose"]["result"]["adapter"]
    except (OSError, ValueError, KeyError, TypeError):
        return epochs[-1]
    return next((epoch for epoch in epochs if epoch.name == name), epochs[-1])


def wait_until_ready(server: subprocess.Popen[bytes], port: int, starts_s: float = STARTS_S) -> float:
    """Seconds until the server answered.

    Raises:
        RuntimeError: it ended, or did not answer in time; its own words are above, in the log.
    """
    started = time.monotonic()
    while time.monotonic() - started < starts_s:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM ended with code {server.returncode} before it answered: its last lines say why")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return time.monotonic() - started
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    server.kill()
    raise RuntimeError(f"vLLM did not answer within {starts_s / MINUTES:.0f} minutes")


def leave_with(server: subprocess.Popen[bytes]) -> None:
    """End the container when the server ends: one without a server would keep its GPU, and answer nothing."""

    def watch() -> None:
        code = server.wait()
        print(f"vLLM ended with code {code}; its container leaves, and the next request starts another", flush=True)
        sys.stdout.flush()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def start_server() -> subprocess.Popen[bytes]:
    """The server, when it answers; its key is asked for at every address, and `/v1` asks for it again."""
    key = os.environ["NOESIS_API_KEY"]
    path = os.pathsep.join([GUARD, os.environ.get("PYTHONPATH", "")])
    development = {"VLLM_SERVER_DEV_MODE": "1"} if SNAPSHOT else {}  # for /sleep and /wake_up
    server = subprocess.Popen(command(WHAT), env=os.environ | {"VLLM_API_KEY": key, "PYTHONPATH": path} | development)
    print(f"ready after {wait_until_ready(server, PORT):.0f} s", flush=True)
    return server


def post(path: str, body: dict[str, object] | None = None) -> None:
    """Ask the server in this container."""
    headers = {"Authorization": f"Bearer {os.environ['NOESIS_API_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", json.dumps(body or {}).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=5 * MINUTES) as reply:  # noqa: S310  (this container's)
        reply.read()


def start_asleep() -> subprocess.Popen[bytes]:
    """The server that a snapshot is taken of: it has answered, so that all is compiled, and sleeps."""
    server = start_server()
    post("/v1/completions", {"model": "noesis", "prompt": "A", "max_tokens": 8})
    weights.commit()
    post("/sleep?level=1")
    return server


def wake(server: subprocess.Popen[bytes]) -> None:
    """Go on after the snapshot, or from it."""
    began = time.monotonic()
    post("/wake_up")
    print(f"awake after {time.monotonic() - began:.1f} s", flush=True)
    leave_with(server)


settings = {
    "image": image,
    "gpu": options["NOESIS_GPU"],
    "volumes": {"/data": modal.Volume.from_name(VOLUME).with_mount_options(read_only=True), "/weights": weights},
    "secrets": secrets,
    "min_containers": int(options["NOESIS_MIN_CONTAINERS"]),  # 0: an idle endpoint costs nothing
    "max_containers": max(1, int(options["NOESIS_MIN_CONTAINERS"])),  # however many requests come
    "scaledown_window": 5 * MINUTES,
    "timeout": 60 * MINUTES,
    "startup_timeout": STARTS_S,
}

if SNAPSHOT:

    @app.cls(**settings, enable_memory_snapshot=True, experimental_options={"enable_gpu_snapshot": True})
    @modal.concurrent(max_inputs=32)
    class Server:
        """vLLM, started once and then restored from the snapshot that Modal takes of it asleep."""

        @modal.enter(snap=True)
        def start(self) -> None:
            self.server = start_asleep()

        @modal.enter(snap=False)
        def wake(self) -> None:
            wake(self.server)

        @modal.web_server(port=PORT, startup_timeout=STARTS_S)
        def serve(self) -> None:
            """It serves already."""

else:

    @app.function(**settings)
    @modal.concurrent(max_inputs=32)
    @modal.web_server(port=PORT, startup_timeout=STARTS_S)
    def serve() -> None:
        """Start vLLM; Modal passes requests on when this has returned."""
        leave_with(start_server())
        if not modal.is_local():
            weights.commit()  # what was downloaded and compiled: the next start has it
