"""The weights of a GGUF file as safetensors in bf16, by transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.console import Progress
from noesis.core.files import scratch_folder
from noesis.core.i18n import _
from noesis.core.libraries import quiet_libraries

ALONE = "model.gguf"
MEGABYTE = 1_000_000  # bytes


def load_dequantised(gguf: Path, config: Any = None, *, shown: str = "") -> tuple[Any, dict[str, Any]]:
    """The model of a GGUF file, in bf16, and transformers' report of what was not found in it.

    Args:
        config: transformers' configuration; None: what transformers makes of the metadata.
        shown: the file's name in the line of progress.
    """
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    given = {} if config is None else {"config": config}
    with _counted(shown or gguf.name):
        model, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
            **given,
        )
    return model, report


def load_gguf_tokenizer(gguf: Path) -> Any:
    """transformers' tokenizer of a GGUF file, whose way of cutting a text first may be lost."""
    quiet_libraries()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@contextmanager
def alone(gguf: Path, target: Path) -> Iterator[Path]:
    """The file by another name, in a folder of its own beside `target`: transformers also reads the settings and
    adapters that lie beside a model, and those may be another model's."""
    with scratch_folder(target.parent, f"{target.name}-file") as folder:
        link = folder / ALONE
        try:
            link.symlink_to(gguf.resolve())
        except OSError:  # Windows, for users without that right
            os.link(gguf.resolve(), link)
        yield link


@contextmanager
def _counted(name: str) -> Iterator[None]:
    """transformers' bar, which can't be switched off once tqdm is loaded, as one of our lines of progress."""
    import transformers.modeling_gguf_pytorch_utils as reader

    def counted(tensors: list[Any], **_ignored: Any) -> Iterable[Any]:
        done, total = 0, sum(tensor.n_bytes for tensor in tensors)
        with Progress(_("dequantising {name}", name=name), total // MEGABYTE, "MB") as progress:
            for tensor in tensors:
                yield tensor
                done += tensor.n_bytes
                progress.advance(done // MEGABYTE - progress.done)

    bar, reader.tqdm = reader.tqdm, counted
    try:
        yield
    finally:
        reader.tqdm = bar
