"""The command `noesis`: starts `noesis.cli`, and says why if another project's package has taken its place.

It stands outside the package `noesis`, whose files that other package writes over.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from noesis.cli import main as run
    except ImportError as error:
        if not _files_were_replaced(error):
            raise
        sys.exit(
            f"error: Noesis can't start ({error}): another package named `noesis` has written over its files, or took "
            "them away. Mend it with\n"
            "  pip uninstall noesis\n"
            "  pip install --force-reinstall --no-deps noesis-tribunal"
        )
    run()


def _files_were_replaced(error: ImportError) -> bool:
    """Whether another distribution `noesis` is installed beside, or was, and took `noesis/__init__.py` with it."""
    try:
        other = importlib.metadata.distribution("noesis")
    except importlib.metadata.PackageNotFoundError:
        return error.name == "noesis"
    return not any(entry.value == "noesis.cli:main" for entry in other.entry_points)
