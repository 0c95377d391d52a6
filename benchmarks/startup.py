"""What `noesis --help` costs: seconds as a whole process (median of 15), beside a bare interpreter, and the modules it
loads.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Alternate both commands, so that a drifting machine disturbs neither."""
    run = "from noesis.cli import run_command; run_command(['--help'])"
    bare, own = [], []
    for _ in range(15):
        bare.append(seconds("pass"))
        own.append(seconds(run))
    loaded = subprocess.run(
        [sys.executable, "-c", run + "; import sys; print('MODULES', len(sys.modules))"],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"noesis --help        median {statistics.median(own):.3f} s, worst {max(own):.3f} s")
    print(f"bare interpreter     median {statistics.median(bare):.3f} s")
    print(f"modules loaded       {loaded.stdout.split('MODULES')[1].strip()}")


if __name__ == "__main__":
    main()
