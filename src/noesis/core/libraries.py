"""Versions of the libraries that results depend on, and silence for their progress bars and warnings."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings

LOGGERS = (
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    # warns that it can't fetch a faster kernel from a hub; its own is meant to be used, and no code from a hub
    "bitsandbytes.backends.cpu.ops",
    "datasets",
    "torch",
    "huggingface_hub",
)
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "gguf",
    "xllamacpp",
    "numpy",
)


def quiet_libraries() -> None:
    """Switch off telemetry, progress bars of local work, and warnings that a user can't act on; call before using them.

    Downloads from a hub keep their progress bars.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import datasets

    datasets.disable_progress_bars()


def library_versions() -> dict[str, str]:
    """Installed versions of `LIBRARIES`; those that are not installed are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
