"""A language model in transformers, with or without a LoRA adapter, from safetensors alone; no code of its folder runs.

transformers and PEFT raise whatever comes to them on a folder that is not as they expect, and fill weights that are
missing with random numbers. Both are one message here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.core.console import say
from noesis.core.errors import ModelError, NoesisError
from noesis.core.i18n import _
from noesis.core.libraries import quiet_libraries
from noesis.llm.model_config import check_model_folder
from noesis.llm.weights.tensors import iter_trained_weights, read_adapter

SHOWN = 300  # characters of a library's own message


def load_causal_model(folder: Path, **settings: Any) -> Any:
    """The model in `folder`.

    Args:
        settings: of transformers' `from_pretrained`: `dtype`, `device_map`, `quantization_config`.

    Raises:
        ModelError: a file is damaged or missing, transformers does not know the architecture, or weights are missing.
    """
    check_model_folder(folder)
    quiet_libraries()
    from transformers import AutoModelForCausalLM

    with library_errors(_("can't load {folder}", folder=folder)):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            _(
                "{folder} lacks {count} of the model's weights, {example!r} among them: fetch the model again",
                folder=folder,
                count=len(missing),
                example=missing[0],
            )
        )
    return model


def put_adapter(model: Any, folder: Path) -> Any:
    """`model` with the trained LoRA adapter in `folder` on it, as a PeftModel that is not trained further.

    Raises:
        ModelError: the adapter is damaged, of a kind that can't be merged, or of another base.
    """
    read_adapter(folder)  # which refuses what PEFT would trip over
    from peft import PeftModel

    with library_errors(_("can't load the adapter {folder}", folder=folder)):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False, use_safetensors=True).eval()


def load_merged_model(
    base: Path, adapter_folder: Path | None, *, quantization: Quantization, dtype: str, device: str = "cpu"
) -> Any:
    """The merged model in memory, to generate answers with.

    Args:
        adapter_folder: None: the base alone, as it was trained against.
        dtype: of weights and arithmetic.
        device: `cpu` or `cuda`.
    """
    import torch

    model = load_causal_model(base, dtype=getattr(torch, dtype))
    adapter = read_adapter(adapter_folder) if adapter_folder is not None else None
    state = model.state_dict()
    with torch.inference_mode():
        for name, weight in iter_trained_weights(base, quantization, dtype, adapter):
            if name in state:  # tied weights are there once
                state[name].copy_(weight)
    return model.to(device).eval()


def switch_adapter(
    model: Any, base: Path, adapter_folder: Path, *, on: bool, quantization: Quantization, dtype: str
) -> None:
    """Turn a model of `load_merged_model` from base into tuned model or back, in place: only what the adapter changes.

    Its weights are then bit for bit those that loading it anew would give.
    """
    import torch

    adapter, state = read_adapter(adapter_folder), model.state_dict()
    with torch.inference_mode():
        for name, weight in iter_trained_weights(
            base, quantization, dtype, adapter if on else None, only=adapter.targets
        ):
            if name in state:
                state[name].copy_(weight)


def free_gpu_memory() -> None:
    """Free the GPU's memory as far as a running process can; does nothing without a GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        say(
            _(
                "  the answering model has left the GPU: {memory_allocated:.1f} GiB still in use",
                memory_allocated=torch.cuda.memory_allocated() / 2**30,
            )
        )


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises on a stranger's files into one message that begins with `what`."""
    try:
        yield
    except (NoesisError, MemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:SHOWN].rstrip(".")
        if "ignore_mismatched_sizes" in words:  # transformers logs which, and the log is silenced
            words = _("its weights do not have the shapes that config.json describes")
        kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
        raise ModelError(
            _("{what}: {kind}{words}; if its files are damaged, fetch it again", what=what, kind=kind, words=words)
        ) from None
