"""Run tests again and again beside busy processes; stop at the first run that fails.

python tests/helpers/under_load.py --runs 20 --busy 4 -- -m "timing and not full"      (what `make test-load` does)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

BUSY = "while True: pass"


def main() -> int:
    """The exit code of the first failing run, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=4, help="processes that only burn CPU meanwhile")
    parser.add_argument("words", nargs="*", help="options for pytest, after --")
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.busy)]
    try:
        for number in range(1, options.runs + 1):
            started = time.monotonic()
            code = subprocess.run([sys.executable, "-m", "pytest", *options.words]).returncode
            print(
                f"run {number} of {options.runs} beside {options.busy} busy processes:"
                f" {'passed' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - started:.0f} s",
                flush=True,
            )
            if code:
                return code
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
