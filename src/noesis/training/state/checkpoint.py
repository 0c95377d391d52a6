"""Trainer states on disk, whole or not at all, and read without running code: `checkpoints/resume/checkpoint-N/`.

A state is written into a temporary folder, flushed, sealed by a manifest with the hash of each file, and renamed. A
resuming run takes the newest intact one; a torn or tampered one is reported and set aside. Tensors are safetensors,
everything else JSON: no pickle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noesis.core.console import say
from noesis.core.errors import TrainingError
from noesis.core.files import files_in, replace_folder, sha256_file, sha256_json, sync_tree, write_text
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.rooted import move, remove

FORMAT = 1
SEAL = "manifest.json"  # hashes of a state's files, written last
STATE = "trainer_state.json"  # the name that transformers reads
KEEP = 2  # states

Tree = Any  # dicts, lists and tuples of tensors and plain values


# --- folders


def step_of(folder: Path) -> int:
    """The step of a folder `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def saved(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first, whole or not."""
    return sorted((p for p in folder.glob("checkpoint-[0-9]*") if p.name.rpartition("-")[2].isdigit()), key=step_of)


def seal(part: Path, step: int) -> None:
    """Write the manifest of a folder that is otherwise complete."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files_in(part) if p.name != SEAL}
    body = {"format": FORMAT, "step": step, "files": files}
    write_text(part / SEAL, json.dumps(body | {"sha256": sha256_json(body)}, indent=2))


def publish(part: Path, target: Path) -> None:
    """Flush a sealed folder, give it its name, and drop what is older than the newest `KEEP`."""
    sync_tree(part)
    replace_folder(part, target)
    for old in saved(target.parent)[:-KEEP]:
        # renamed first: a kill in between must not leave something that looks torn
        gone = old.with_name(f".{old.name}.part")
        remove(gone)
        move(old, gone)
        remove(gone)


def unusable_reason(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    try:
        manifest = read_json_file(folder / SEAL, constants=False)
        body = {key: manifest[key] for key in ("format", "step", "files")}
        names = dict(body["files"])
        if manifest["sha256"] != sha256_json(body):
            return _("{seal} was changed", seal=SEAL)
    except FileNotFoundError:
        return _("{seal} is missing", seal=SEAL)
    except (ValueError, KeyError, TypeError, AttributeError):
        return _("{seal} is damaged", seal=SEAL)
    if body["format"] != FORMAT:
        return _("it has format {body}, this version reads {format}", body=body["format"], format=FORMAT)
    if body["step"] != step_of(folder):
        return _("it is of step {body}", body=body["step"])
    for name, entry in names.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            return _("{name} is missing", name=name)
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            return _("{name} is torn or was changed", name=name)
    extra = sorted(
        p.name for p in folder.iterdir() if p.name not in names and p.name != SEAL and not p.name.startswith(".")
    )
    return _("{extra} does not belong to it", extra=extra[0]) if extra else None


def newest_whole(folder: Path, *, set_aside: bool = True, tell: Callable[[str], None] = say) -> Path | None:
    """The newest whole checkpoint; None if there is none.

    Args:
        set_aside: rename newer ones that are not whole to `torn-N`; of several processes one does.
        tell: prints which were set aside, and why.
    """
    for leftover in folder.glob(".*.part") if set_aside else ():
        remove(leftover)
    for candidate in reversed(saved(folder)):
        reason = unusable_reason(candidate)
        if reason is None:
            return candidate
        if not set_aside:
            continue
        aside = candidate.with_name(f"torn-{step_of(candidate)}")
        remove(aside)
        move(candidate, aside)
        tell(
            _(
                "  {name} is not whole ({reason}): set aside as {aside_name}, the one before it is used",
                name=candidate.name,
                reason=reason,
                aside_name=aside.name,
            )
        )
    return None


# --- contents


def write_tree(folder: Path, name: str, tree: Tree) -> None:
    """`name`.json and `name`.safetensors: any nesting of dicts, lists, tuples, tensors and plain values."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    plain = _pack(tree, tensors, seen)
    write_text(folder / f"{name}.json", json.dumps(plain, allow_nan=False))
    save_file(tensors, folder / f"{name}.safetensors")


def read_tree(folder: Path, name: str) -> Tree:
    """What `write_tree` wrote, bit-identical; tensors in main memory."""
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{name}.safetensors")
    return _unpack(read_json_file(folder / f"{name}.json", constants=False), tensors)


def _pack(value: Tree, tensors: dict[str, Any], seen: set[int]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        if tensor.data_ptr() in seen:  # safetensors refuses memory that is shared
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        key = str(len(tensors))
        tensors[key] = tensor
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors, seen), _pack(v, tensors, seen)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [_pack(v, tensors, seen) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TrainingError(
        _("a value of type {name} in the trainer's state can't be saved without pickle", name=type(value).__name__)
    )


def _unpack(value: Any, tensors: dict[str, Any]) -> Tree:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in inner}
    items = [_unpack(v, tensors) for v in inner]
    return tuple(items) if kind == "tuple" else items


def rng_states() -> Tree:
    """The states of every random number generator in this process."""
    import numpy as np
    import torch

    state: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = state
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_rng_states(state: Tree) -> None:
    """Restore what `rng_states` returned; a GPU's only where there is one."""
    import numpy as np
    import torch

    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
