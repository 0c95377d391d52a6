"""Training that runs out of a GPU's memory, for real: another process takes most of it after the plan was made.

    python benchmarks/gpu/out_of_memory.py [MODEL] [GIB]      # of families.py; GiB that are left to training

Prints what training says, and families.py's RESULT line: the setup there is the one that it went on with.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

LOADED_GIB = 8  # of training, when the other process takes its share


def take(left_gib: float) -> None:
    """Wait until another process has loaded its model, then hold all memory but `left_gib` until stopped."""
    import torch

    free, total = torch.cuda.mem_get_info()
    while free > total - (LOADED_GIB << 30):
        time.sleep(0.05)
        free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - int(left_gib * 2**30)), dtype=torch.uint8, device="cuda")
    print(f"another process took {held.numel() / 2**30:.1f} of the {free / 2**30:.1f} GiB that were free", flush=True)
    time.sleep(3600)


def main(model: str = "llama-3.1-8b", left_gib: str = "14") -> None:
    other = subprocess.Popen([sys.executable, __file__, "take", left_gib])
    try:
        families = Path(__file__).with_name("families.py")
        subprocess.run([sys.executable, families, "train", model], check=True)
    finally:
        other.terminate()
        other.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["take"]:
        take(float(sys.argv[2]))
    else:
        main(*sys.argv[1:])
