"""A safetensors file written tensor by tensor: the header first, then the bytes, and read again to see that they are there.

The format: 8 bytes with the header's length, the header as JSON (type, shape and place of each tensor), the tensors' bytes.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.llm.weights import StoredTensor, list_tensors, read_tensor


def write_shard(file: Path, entries: list[StoredTensor], arrays: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Write `arrays`, one for each of `entries` and in their order; only one is held at a time.

    Yields:
        (name, sha256 of the tensor's bytes), after each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.size],
        }
        place += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for entry, array in zip(entries, arrays, strict=True):
            raw = _bytes(array)
            if raw.nbytes != entry.size:
                raise ValueError(f"{entry.name}: {raw.nbytes} bytes for {entry.size}")
            f.write(raw)
            yield entry.name, hashlib.sha256(raw).hexdigest()


def verify_shards(folder: Path, expected: dict[str, tuple[tuple[int, ...], str, str]]) -> None:
    """Read a written model again, tensor by tensor.

    Args:
        expected: name → (shape, type, sha256 of its bytes).

    Raises:
        ModelError: a tensor is missing, of another shape or type, or its bytes are others than were written.
    """
    found = list_tensors(folder)
    if found.keys() != expected.keys():
        raise ModelError(
            f"{folder}: {min(found.keys() ^ expected.keys())!r} is missing or too much after writing: is the disk sound?"
        )
    for name, (shape, dtype, sha256) in expected.items():
        entry = found[name]
        if (entry.shape, entry.dtype) != (shape, dtype) or hashlib.sha256(
            _bytes(read_tensor(entry))
        ).hexdigest() != sha256:
            raise ModelError(f"{folder}: {name!r} does not read back as it was written: is the disk sound?")


def _bytes(tensor: Any) -> Any:
    """A contiguous tensor's bytes, without a copy."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
