"""Memory and time of a release at Llama-3.1-8B's shapes: `python benchmarks/release.py [--layers 4] [--kinds
f16,q8_0,q4_k_m]`.

Random weights, every shape of the 8B but fewer layers, in files of 5 GB at most, as the Hub has them. Each step runs
in a process of its own, whose peak memory (VmHWM: with the pages of mapped files) is what the kernel says. All 32
layers are extrapolated: time is linear in the layers, memory does not depend on them, since one tensor is held at a
time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
PROJECTIONS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
RANK = 64
LIMIT_GB = 6.0


def make(folder: Path, layers: int) -> None:
    """A random base in bf16 and an adapter of rank 64 on all seven projections."""
    sys.path[:0] = [str(ROOT / "tests")]
    import torch
    from safetensors.torch import save_file

    from helpers.tiny_tokenizers import write_standin

    base, adapter = folder / "base", folder / "adapter"
    write_standin(base, "smollm2")
    raw = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    raw["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (base / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    (base / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": layers}), encoding="utf-8")
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        out = torch.empty(shape, dtype=torch.bfloat16)
        for row in out.view(-1).split(1 << 24):
            row.copy_(torch.randn(row.shape, generator=draw) * 0.02)
        return out

    places: dict[str, str] = {}
    files: list[dict[str, Any]] = [
        {"model.embed_tokens.weight": random(128256, 4096)},
        {"lm_head.weight": random(128256, 4096), "model.norm.weight": torch.ones(4096).bfloat16()},
    ]
    names = [
        f"model-{i + 1:05d}-of-{len(files) + -(-layers // 8):05d}.safetensors"
        for i in range(len(files) + -(-layers // 8))
    ]
    for i, tensors in enumerate(files):
        save_file(tensors, base / names[i], metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, names[i])
    del files, tensors
    for start in range(0, layers, 8):
        tensors, name = {}, names[2 + start // 8]
        for i in range(start, min(start + 8, layers)):
            tensors |= {f"model.layers.{i}.{p}.weight": random(*shape) for p, shape in PROJECTIONS.items()}
            tensors |= {
                f"model.layers.{i}.{n}.weight": torch.ones(4096).bfloat16()
                for n in ("input_layernorm", "post_attention_layernorm")
            }
        save_file(tensors, base / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8"
    )
    adapter.mkdir()
    deltas = {}
    for i in range(layers):
        for p, (out, into) in PROJECTIONS.items():
            stem = f"base_model.model.model.layers.{i}.{p}"
            deltas[f"{stem}.lora_A.weight"] = torch.randn(RANK, into, generator=draw) * 0.01
            deltas[f"{stem}.lora_B.weight"] = torch.randn(out, RANK, generator=draw) * 0.01
    save_file(deltas, adapter / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [p.split(".")[1] for p in PROJECTIONS],
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def step(name: str, folder: Path) -> None:
    """One step, in this process."""
    from noesis.core.config import Quantization
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.merge_weights import merge

    base, adapter, merged = folder / "base", folder / "adapter", folder / "merged"
    if name.startswith("merge"):
        shutil.rmtree(merged, ignore_errors=True)
        merge(
            base,
            adapter,
            merged,
            quantization=Quantization(load_in_4bit=name == "merge into NF4"),
            dtype="bfloat16",
            card="",
        )
    elif name == "adapter":
        write_adapter_gguf(adapter, base, folder / "out.gguf")
    else:
        write_gguf(merged, folder / "out.gguf", name, name="x", licence="x")


def peak_bytes() -> int:
    """This process's largest resident memory so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kinds", default="f16,q8_0,q4_k_m")
    parser.add_argument("--folder", type=Path, help="where the weights go; default: a temporary folder")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        import noesis.release.gguf.writer
        import noesis.release.merge_weights  # noqa: F401

        began = time.monotonic()
        step(given.step, given.folder)
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), "peak_bytes": peak_bytes()}))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        if given.folder is None or not (folder / "base").exists():
            make(folder, given.layers)
        sizes = {f.name: f.stat().st_size for f in (folder / "base").glob("*.safetensors")}
        print(
            f"base: {given.layers} of 32 layers, {sum(sizes.values()) / 1e9:.2f} GB in {len(sizes)} files, the "
            f"largest {max(sizes.values()) / 1e9:.2f} GB"
        )
        worst = 0.0
        for name in ("merge", "merge into NF4", "adapter", *given.kinds.split(",")):
            command = [sys.executable, __file__, "--folder", str(folder), "--step", name]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            figures = json.loads(done.stdout.splitlines()[-1])
            peak = figures["peak_bytes"] / 1e9
            worst = max(worst, peak)
            results = (folder / "merged").glob("*.safetensors") if name.startswith("merge") else [folder / "out.gguf"]
            written = sum(f.stat().st_size for f in results) / 1e9
            line = {
                "step": name,
                "layers": given.layers,
                "seconds": figures["seconds"],
                "peak_gb": round(peak, 2),
                "written_gb": round(written, 2),
            }
            print(json.dumps(line), flush=True)
        print(f"largest peak {worst:.2f} GB of {LIMIT_GB:.0f}")
        if worst > LIMIT_GB:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
