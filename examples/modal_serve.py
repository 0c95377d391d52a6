"""Serve the tuned model on Modal: vLLM, OpenAI's protocol, a key from a secret, no cost while nobody uses it.

    modal secret create noesis-serve NOESIS_API_KEY=$(openssl rand -hex 24)
    modal deploy examples/modal_serve.py                              # the merged model on the volume
    NOESIS_SERVE=adapter modal deploy examples/modal_serve.py         # base and adapter: noesis and noesis-base

It reads the volume that `modal run scripts/modal_train.py` wrote: /data/merged/noesis-philosopher-v1 and
/data/checkpoints/epoch_N. vLLM needs its own version of torch, so it has an image of its own and shares nothing with
the project's environment. docs/integrate.md says how to use it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import modal

MINUTES = 60
PORT = 8000
VLLM = "vllm==0.33.0"
VOLUME, SECRET, HUGGING_FACE = "noesis-training-data", "noesis-serve", "huggingface-token"
BASE = os.environ.get("NOESIS_BASE", "meta-llama/Llama-3.1-8B-Instruct")
MERGED = os.environ.get("NOESIS_MERGED", "/data/merged/noesis-philosopher-v1")
WHAT = os.environ.get("NOESIS_SERVE", "merged")
LONGEST, RANK = 8192, 64  # tokens of a conversation; largest rank of an adapter

app = modal.App("noesis-serve")
image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(VLLM)
    .env(
        {
            "HF_HOME": "/data/.cache/huggingface",
            "VLLM_NO_USAGE_STATS": "1",
            "NOESIS_SERVE": WHAT,
            "NOESIS_BASE": BASE,
            "NOESIS_MERGED": MERGED,
        }
    )
)


def command(what: str, checkpoints: Path = Path("/data/checkpoints")) -> list[str]:
    """vLLM's command line for the `merged` model, or for the base with the newest `adapter`.

    The key is passed through the environment, never here.
    """
    common = ["--host", "0.0.0.0", "--port", str(PORT), "--max-model-len", str(LONGEST), "--dtype", "bfloat16"]  # noqa: S104  (inside Modal's container)
    if what == "merged":
        return ["vllm", "serve", MERGED, "--served-model-name", "noesis", *common]
    if what != "adapter":
        raise SystemExit(f"error: NOESIS_SERVE={what!r}: choose merged or adapter")
    epochs = sorted(checkpoints.glob("epoch_[0-9]*"), key=lambda p: int(p.name.removeprefix("epoch_")))
    if not epochs:
        raise SystemExit(f"error: {checkpoints} holds no adapter: run  modal run scripts/modal_train.py  first")
    lora = ["--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules", f"noesis={epochs[-1]}"]
    return ["vllm", "serve", BASE, "--served-model-name", "noesis-base", *lora, *common]


@app.function(
    image=image,
    gpu="L40S",
    volumes={"/data": modal.Volume.from_name(VOLUME)},
    secrets=[
        modal.Secret.from_name(SECRET, required_keys=["NOESIS_API_KEY"]),
        modal.Secret.from_name(HUGGING_FACE, required_keys=["HF_TOKEN"]),
    ],
    min_containers=0,  # scale to zero: an idle endpoint costs nothing, and its first answer takes a minute or two
    max_containers=1,  # one GPU at most, however many requests come
    scaledown_window=5 * MINUTES,
    timeout=60 * MINUTES,
)
@modal.concurrent(max_inputs=32)
@modal.web_server(port=PORT, startup_timeout=15 * MINUTES)
def serve() -> None:
    """Start vLLM; Modal passes requests on as soon as its port answers."""
    subprocess.Popen(command(WHAT), env=os.environ | {"VLLM_API_KEY": os.environ["NOESIS_API_KEY"]})
