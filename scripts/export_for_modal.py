"""Write data/training/exports/{train,eval}.jsonl and statistics.json; the same as `noesis data export`.

python scripts/export_for_modal.py [--language pt|en|both] [--out DIR]
"""

import sys
from pathlib import Path


def main() -> int:
    """Run the command on this checkout's project, unless another is named."""
    try:
        from noesis.cli import run_command
    except ImportError as error:
        print(
            f"error: {error}. Set up the environment with  make setup  and use it:  source .venv/bin/activate",
            file=sys.stderr,
        )
        return 1
    project = [] if "--project" in sys.argv else ["--project", str(Path(__file__).resolve().parents[1])]
    return run_command(["data", "export", *sys.argv[1:], *project])


if __name__ == "__main__":
    sys.exit(main())
