"""The judge's server that Modal's function starts, on a card of one's own: start, calibration, an adapter, its end.

    NOESIS_VLLM="vllm-env/bin/vllm" python benchmarks/judges/vllm_server.py MODEL [--adapter DIR] [--pairs N]

MODEL: a folder, a .gguf file or `smollm2`. The dev half is read (--ask score); the first N pairs of it are judged with
quotes. Then the base is served beside a LoRA adapter, DIR or one of random weights, and both are asked by name. vLLM
lives in an environment of its own (constraints-vllm.txt). One step's failure does not end the others; each step prints
a RESULT line with its seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from noesis.cloud.container.vllm_judge import PORT, temporary_key, vllm_command, vllm_server
from noesis.llm.http import Http
from noesis.llm.hub import find_model

ROOT = Path(__file__).resolve().parents[2]
URL = f"http://127.0.0.1:{PORT}/v1"
RANKS = (8, 16, 32, 64, 128, 256)  # that vLLM keeps room for
STARTS_S, CALIBRATION_S, ANSWER_S = 150.0, 100.0, 60.0
ENDS_S = 20.0  # for the last process to go
QUESTION = "O que é a coragem, afinal? Responde em duas frases."


@contextmanager
def step(name: str) -> Iterator[dict[str, Any]]:
    """Run the block; print what it found, its seconds and what stopped it."""
    found: dict[str, Any] = {}
    began = time.monotonic()
    try:
        yield found
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    print("RESULT", json.dumps({"step": name, "seconds": round(time.monotonic() - began, 1)} | found), flush=True)


def serve(name: str, model: str, key: str, steps: Any, *options: str) -> None:
    """Start the server, run `steps` beside it, stop it, and see what is left of it."""
    began, processes = time.monotonic(), []
    with step(f"{name}: the whole"), vllm_server([*vllm_command(model), *options], key, starts_s=STARTS_S):
        processes = psutil.Process().children(recursive=True)
        ready = {"step": f"{name}: ready", "seconds": round(time.monotonic() - began, 1)}
        print("RESULT", json.dumps(ready), flush=True)
        steps()
    with step(f"{name}: stopped") as found:
        _, alive = psutil.wait_procs(processes, timeout=ENDS_S)
        with socket.socket() as probe:
            free = probe.connect_ex(("127.0.0.1", PORT)) != 0
        found |= {"port_free": free, "processes": len(processes), "left": [process.name() for process in alive]}


def calibrate(project: Path, model: str, *options: str) -> None:
    """`noesis tribunal calibrate` of the dev half by the server."""
    command = [sys.executable, "-m", "noesis", "tribunal", "calibrate", "--judge", f"openai:{URL}:{model}"]
    with step(" ".join(("calibrate", *options))) as found:
        arguments = [*command, "--part", "dev", "--project", str(project), *options]
        done = subprocess.run(arguments, check=False, timeout=CALIBRATION_S)
        found["code"] = done.returncode


def ask(names: tuple[str, ...], key: str) -> None:
    """What each model says to one question, greedily."""
    answers = {}
    http = Http(URL, {"Authorization": f"Bearer {key}"}, timeout_s=ANSWER_S)
    for name in names:
        with step(f"ask {Path(name).name}") as found:
            body = {"model": name, "max_tokens": 64, "temperature": 0.0}
            body["messages"] = [{"role": "user", "content": QUESTION}]
            reply = http.request("POST", f"{URL}/chat/completions", body, deadline_s=ANSWER_S)
            if reply.status != 200:
                raise SystemError(reply.message)
            answers[name] = found["answer"] = json.loads(reply.body)["choices"][0]["message"]["content"]
    http.close()
    if len(answers) == len(names):
        differ = len(set(answers.values())) > 1
        print("RESULT", json.dumps({"step": "compare", "the adapter changes the answer": differ}), flush=True)


def random_adapter(model: Path, folder: Path, rank: int = 16) -> Path:
    """An adapter in peft's format on the query and value projections of `model`, large enough to be heard."""
    import torch
    from safetensors.torch import save_file

    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    head = shape.get("head_dim") or width // heads
    rows = {"q_proj": heads * head, "v_proj": shape["num_key_value_heads"] * head}
    torch.manual_seed(0)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for module, out in rows.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, width, dtype=torch.bfloat16) * width**-0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank, dtype=torch.bfloat16) * 0.05
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    settings |= {"target_modules": list(rows), "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--pairs", default="6")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, temporary_key() as key:
        project = Path(work) / "project"
        shutil.copytree(ROOT / "data", project / "data")
        with step("model"):
            folder = find_model(options.model).path
        model = str(folder)

        def judge() -> None:
            calibrate(project, model, "--ask", "score")
            calibrate(project, model, "--ask", "quote", "--pairs", options.pairs)

        serve("judge", model, key, judge)
        adapter = options.adapter or random_adapter(folder, Path(work) / "adapter")
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        lora = ("--enable-lora", "--max-lora-rank", str(min(r for r in RANKS if r >= rank)))
        serve("adapter", model, key, lambda: ask((model, "noesis"), key), *lora, "--lora-modules", f"noesis={adapter}")


if __name__ == "__main__":
    main()
