"""Check the examples by file and line; the same as `noesis data validate`.

python scripts/validate_training_data.py [PATHS] [--json FILE]
"""

import sys
from pathlib import Path


def main() -> int:
    """Run the command on the project that is named or at or above the working directory, else on this checkout's."""
    try:
        from noesis.cli import run_command
        from noesis.core.project import name_project_unless_here
    except ImportError as error:
        print(
            f"error: {error}. Set up the environment with  make setup  and use it:  source .venv/bin/activate",
            file=sys.stderr,
        )
        return 1
    name_project_unless_here(Path(__file__).resolve().parents[1])
    return run_command(["data", "validate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
