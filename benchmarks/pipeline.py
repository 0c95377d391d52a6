"""From a fresh clone to a finished demo: seconds of set-up (downloads apart), of each stage, and peak memory.

    python benchmarks/pipeline.py [--skip-setup]

Clones this checkout into a temporary folder; sets up twice, with an empty and then a full pip cache, so that the
difference is the download; runs `noesis demo` there with an empty model cache. With --skip-setup the demo alone, in
this environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def timed(command: list[str], cwd: Path, environment: dict[str, str]) -> tuple[float, int]:
    """(seconds, peak bytes of the process and its children together) of a command."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, cwd=cwd, env=environment)
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(p.memory_info().rss for p in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="noesis-bench-") as folder:
        clone = Path(folder) / "noesis"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = os.environ | {"PIP_CACHE_DIR": f"{folder}/pip", "NOESIS_CACHE": f"{folder}/models"}
        figures = []
        program = Path(sys.executable).with_name("noesis")
        if "--skip-setup" not in sys.argv:
            cold, _ = timed(["make", "setup"], clone, environment)
            warm, _ = timed(["make", "setup", "VENV=again"], clone, environment)
            figures += [
                ("set-up, empty pip cache", cold),
                ("set-up, full pip cache", warm),
                ("so downloading took", max(cold - warm, 0)),
            ]
            program = clone / ".venv" / "bin" / "noesis"
        whole, peak = timed([str(program), "demo"], clone, environment)
        manifest = json.loads((clone / "runs" / "demo" / "manifest.json").read_text(encoding="utf-8"))
        second, _ = timed([str(program), "demo"], clone, environment)
        print()
        for name, seconds in figures:
            print(f"{name:28} {seconds:7.1f} s")
        for stage, entry in manifest["stages"].items():
            print(f"{'stage ' + stage:28} {entry['seconds']:7.1f} s")
        print(f"{'noesis demo as a whole':28} {whole:7.1f} s   peak memory {peak / 1e9:.2f} GB")
        print(f"{'a second noesis demo':28} {second:7.1f} s")
        train, plan, judge = (manifest["stages"][s]["result"] for s in ("train", "plan", "judge"))
        print(f"training at rank {plan['r']}: {train['tokens_per_s']:.0f} tokens/s (plan: {plan['tokens_per_s']:.0f})")
        print(
            f"peak memory of training: {train['peak_memory_bytes'] / 1e9:.2f} GB (plan: "
            f"{plan['memory_bytes'] / 1e9:.2f})"
        )
        print("held-out", json.dumps({who: judge["preference"][who] for who in ("base", "tuned")}))
        files = manifest["stages"]["gguf"]["result"]["files"]
        print("parity  ", json.dumps({kind: [f["kl_mean"], f["top1"]] for kind, f in files.items()}))


if __name__ == "__main__":
    main()
