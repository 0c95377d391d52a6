"""Write a safetensors file tensor by tensor, header first, and read it back to check it.

The format: 8 bytes with the header's length, the header as JSON (type, shape and offsets of each tensor), the tensors'
bytes. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import atomic
from noesis.core.i18n import _
from noesis.llm.weights.tensors import StoredTensor, list_tensors, read_tensor


def write_shard(file: Path, tensors: list[StoredTensor], arrays: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Write `arrays`, one for each of `tensors` and in their order; only one is in memory at a time.

    Yields:
        (name, sha256 of the tensor's bytes), after each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic(file, "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor, array in zip(tensors, arrays, strict=True):
            data = _bytes(array)
            if data.nbytes != tensor.size:
                raise ValueError(
                    _(
                        "{name}: {nbytes} bytes to write, {size} planned",
                        name=tensor.name,
                        nbytes=data.nbytes,
                        size=tensor.size,
                    )
                )
            f.write(data)
            yield tensor.name, hashlib.sha256(data).hexdigest()


def verify_shards(folder: Path, expected: dict[str, tuple[tuple[int, ...], str, str]]) -> None:
    """Read a written model back, tensor by tensor.

    Args:
        expected: name → (shape, type, sha256 of its bytes).

    Raises:
        ModelError: a tensor is missing or unexpected, has another shape or type, or bytes other than those written.
    """
    found = list_tensors(folder)
    if found.keys() != expected.keys():
        name = min(found.keys() ^ expected.keys())
        raise ModelError(
            _("{folder}: {name!r} is missing or unexpected after writing: is the disk sound?", folder=folder, name=name)
        )
    for name, wanted in expected.items():
        tensor = found[name]
        if (tensor.shape, tensor.dtype, hashlib.sha256(_bytes(read_tensor(tensor))).hexdigest()) != wanted:
            raise ModelError(
                _(
                    "{folder}: {name!r} does not read back as it was written: is the disk sound?",
                    folder=folder,
                    name=name,
                )
            )


def _bytes(tensor: Any) -> Any:
    """A contiguous tensor's bytes, without a copy."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
