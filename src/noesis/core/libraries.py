"""Versions of the libraries that results depend on, and silence for their progress bars and warnings."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings

from noesis.core.machine.folders import settle_folders

LOGGERS = (
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    # warns that it can't fetch a faster kernel from a hub; its own is meant to be used, and no code from a hub
    "bitsandbytes.backends.cpu.ops",
    "torch",
    "huggingface_hub",
)
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "gguf",
    "xllamacpp",
    "numpy",
)


def silence_libraries() -> None:
    """Switch off telemetry, progress bars of local work, and warnings that a user can't act on.

    Some libraries print while they are imported, so this comes first in a process; it imports none of them. Downloads
    from a hub keep their progress bars, which ignore TQDM_DISABLE.
    """
    settle_folders()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Silence the libraries that are loaded already, too; call before using them."""
    silence_libraries()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def library_versions() -> dict[str, str]:
    """Installed versions of `LIBRARIES`; those that are not installed are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
