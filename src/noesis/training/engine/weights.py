"""Weights from safetensors to the device, a few at a time: no second copy of the model ever exists.

On a GPU several threads read the files into pinned buffers and copy from there, so that loading runs at the speed of
the page cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.llm.weights.tensors import weight_files

Tensor = Any
TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
GPU_READERS, CPU_READERS = 8, 2  # threads
PREFETCHED_GROUPS = 3


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: `start` and `size` in bytes from the beginning of the file."""

    file: Path
    start: int
    size: int
    shape: tuple[int, ...]
    dtype: Any


def read_index(folder: Path) -> dict[str, Entry]:
    """Every tensor of a model folder, from the headers of its safetensors files.

    Raises:
        ModelError: there is no such file, or one is damaged.
    """
    entries: dict[str, Entry] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt"):
                pass  # it checks the header, which then can be believed
            with open(file, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(length))
            for name, item in header.items():
                if name != "__metadata__" and item["dtype"] in TYPES:
                    begin, end = item["data_offsets"]
                    entries[name] = Entry(
                        file, 8 + length + begin, end - begin, tuple(item["shape"]), TYPES[item["dtype"]]
                    )
        except (OSError, SafetensorError) as error:
            raise ModelError(
                _("{file} can't be read as safetensors ({error}): fetch the model again", file=file, error=error)
            ) from None
    return entries


class Reader:
    """Tensors by name, in `dtype` on `device`."""

    def __init__(self, folder: Path, dtype: Any, device: Any) -> None:
        self.entries, self.dtype, self.device = read_index(folder), dtype, torch.device(device)
        self.pool = ThreadPoolExecutor(GPU_READERS if self.device.type == "cuda" else CPU_READERS)
        self.thread = local()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def groups(self, groups: list[list[str]]) -> Iterator[list[Tensor]]:
        """Each group's tensors, in order; the next groups are already being read."""
        reading: list[list[Future[Tensor]]] = []
        remaining = iter(groups)
        while True:
            while len(reading) <= PREFETCHED_GROUPS and (names := next(remaining, None)) is not None:
                reading.append([self.pool.submit(self._read, name) for name in names])
            if not reading:
                return
            yield [future.result() for future in reading.pop(0)]

    def require(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Check that the files hold every weight of the model that config.json describes: kernels trust their shapes.

        Raises:
            ModelError: one is missing, or has another shape.
        """
        for name, shape in shapes.items():
            if name not in self.entries:
                raise ModelError(
                    _("the model has no weight {name!r}: it is not a complete model of its type", name=name)
                )
            if (found := self.entries[name].shape) != shape:
                raise ModelError(
                    _(
                        "{file}: {name!r} has the shape {found}, and config.json describes {shape}: "
                        "fetch the model again",
                        file=self.entries[name].file,
                        name=name,
                        found=found,
                        shape=shape,
                    )
                )

    def one(self, name: str) -> Tensor:
        """A single tensor, read now."""
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        entry = self.entries[name]
        if self.device.type != "cuda":
            raw = torch.empty(entry.size, dtype=torch.uint8)
            _fill(entry, raw)
            return raw.view(entry.dtype).view(entry.shape).to(self.dtype)
        raw = self._buffer(entry.size)[: entry.size]
        _fill(entry, raw)
        with torch.cuda.stream(self.thread.stream):
            out = raw.view(entry.dtype).view(entry.shape).to(self.device, non_blocking=True).to(self.dtype)
        self.thread.stream.synchronize()  # the buffer is reused
        out.record_stream(torch.cuda.default_stream(self.device))
        return out

    def _buffer(self, size: int) -> Tensor:
        """This thread's pinned buffer."""
        if getattr(self.thread, "stream", None) is None:
            self.thread.stream = torch.cuda.Stream(self.device)
            self.thread.buffer = None
        if self.thread.buffer is None or self.thread.buffer.numel() < size:
            self.thread.buffer = torch.empty(max(size, 2**27), dtype=torch.uint8, pin_memory=True)
        return self.thread.buffer


def _fill(entry: Entry, raw: Tensor) -> None:
    view = memoryview(raw.numpy())
    with open(entry.file, "rb", buffering=0) as f:
        done = 0
        while done < entry.size:
            step = (
                os.preadv(f.fileno(), [view[done:]], entry.start + done)
                if hasattr(os, "preadv")
                else _read_at(f, view, entry.start, done)
            )
            if step == 0:
                raise ModelError(_("{file} ends too early: fetch the model again", file=entry.file))
            done += step


def _read_at(f: Any, view: memoryview, start: int, done: int) -> int:
    f.seek(start + done)
    return int(f.readinto(view[done:]))
