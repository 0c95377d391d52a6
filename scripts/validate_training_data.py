"""Check the examples by file and line; the same as `noesis data validate`.

python scripts/validate_training_data.py [PATHS] [--json FILE]
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
    return run_command(["data", "validate", *sys.argv[1:], *project])


if __name__ == "__main__":
    sys.exit(main())
