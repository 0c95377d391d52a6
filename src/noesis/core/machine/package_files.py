"""The files that projects start from and images are built with: constitution, settings, examples, the Tribunal's, pins.

They are installed with the package; in a checkout they lie in its root, where the guides say. Nothing is written there:
where Noesis is installed may be read-only.
"""

from __future__ import annotations

from pathlib import Path

import noesis
from noesis.core.distribution import DISTRIBUTION
from noesis.core.errors import UsageError
from noesis.core.i18n import _

PACKAGE = Path(noesis.__file__).resolve().parent
INSTALLED = PACKAGE / "files"  # laid out like a checkout: data/, constraints.txt
CHECKOUT = PACKAGE.parents[1]


def package_files() -> Path:
    """The folder that holds `data/` and the constraints: of the installed package, or of the checkout.

    Raises:
        UsageError: the installation is incomplete.
    """
    for root in (INSTALLED, CHECKOUT):
        if (root / "data" / "constitution.yaml").is_file():
            return root
    raise UsageError(
        _(
            "the files that Noesis comes with are missing from {installed}: install it again with  "
            "pip install --force-reinstall --no-deps {distribution}",
            installed=INSTALLED,
            distribution=DISTRIBUTION,
        )
    )


def is_checkout(folder: Path) -> bool:
    """Whether `folder` is the checkout that this Noesis runs from, with its scripts."""
    return folder.resolve() == CHECKOUT and (folder / "scripts" / "modal_train.py").is_file()
