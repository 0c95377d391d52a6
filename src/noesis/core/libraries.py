"""Silence the libraries' own bars and warnings; what matters is said by this project, once. Called before they do work."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings


def quiet_libraries() -> None:
    """No bars of local work, no warnings that a user can't act on, no telemetry. A download from a hub keeps its bar."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    # bitsandbytes warns that it can't fetch a faster kernel from a hub; its own path is meant, and code from a hub is not.
    names = (
        "bitsandbytes.backends.cpu.ops",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "bitsandbytes",
        "datasets",
        "torch",
        "huggingface_hub",
    )
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import datasets

    datasets.disable_progress_bars()


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


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
