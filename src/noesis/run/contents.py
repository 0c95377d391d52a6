"""What lies in a run directory: the files that stages list with their hashes, a few that nobody lists, and strays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from noesis.core.errors import UnsafePathError
from noesis.core.rooted import open_plain
from noesis.run.folder import DROPPINGS
from noesis.run.manifest import Manifest
from noesis.run.stages import SPECS

# Files without a hash in the manifest: locks and notes, states under a seal of their own, caches, what containers
# leave for each other, and what a stage wrote for its own use or rejected. `*` matches slashes, too.
UNLISTED = (
    "manifest.json",
    "manifest.json.sig",
    "config.json",
    "demo.json",
    "summary.txt",
    ".lock",
    ".manifest.lock",
    ".holder",
    ".meter",
    ".cloud/*",
    "checkpoints/resume/checkpoint-*/*",
    "checkpoints/resume/torn-*/*",
    "checkpoints/sft/resume/checkpoint-*/*",
    "checkpoints/sft/resume/torn-*/*",
    "checkpoints/seed_*/resume/checkpoint-*/*",
    "checkpoints/seed_*/resume/torn-*/*",
    "tribunal/replies.sqlite",
    "tribunal/replies.sqlite-*",
    "tribunal/locked_uses.jsonl",
    "tribunal/epochs/epoch_*.json",
    "tribunal/shards/*",
    "gguf/*.rejected.gguf",
    "tensorboard/*",
    "checkpoints/sft/tensorboard/*",
    "influence/*.json",
)
OF_PARENT = ("parent/adapter_model.safetensors", "parent/adapter_config.json")
OTHER_FOLDERS = (".archive", "dataset", "runs")  # beside the run on a volume: what they hold is listed nowhere
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
RUNS_CODE = (
    *(".py", ".pyc", ".pyd", ".pyw", ".pyz", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".com", ".msi", ".scr"),
    *(".sh", ".bash", ".zsh", ".fish", ".command", ".bat", ".cmd", ".ps1", ".vbs", ".jar", ".js", ".mjs", ".pl", ".rb"),
    *(".desktop", ".lnk", ".hta"),
)
PROGRAM_STARTS = (
    b"#!",
    b"\x7fELF",
    b"MZ",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\x80\x02",
    b"\x80\x04",
    b"\x80\x05",
)


def stage_of(name: str) -> str | None:
    """The stage whose output a file is by its name (relative to the run directory); None for no stage's."""
    return next((spec.name for spec in SPECS.values() if any(fnmatchcase(name, p) for p in spec.outputs)), None)


def strays(names: Iterable[str], manifest: Manifest) -> list[str]:
    """Those of `names` that no stage lists and nobody needs.

    A stage that is under way, or was stopped, lists its files when it ends: until then they are none.
    """
    listed = {name for stage in SPECS if stage in manifest.stages for name in manifest.stages[stage].outputs}
    return sorted(name for name in names if name not in listed and not _may_be_unlisted(name, manifest))


def _may_be_unlisted(name: str, manifest: Manifest) -> bool:
    if name.split("/")[0] in OTHER_FOLDERS and "/" in name:
        return True
    if any(fnmatchcase(name, pattern) for pattern in UNLISTED) or name.rpartition("/")[2] in DROPPINGS:
        return True
    if name in OF_PARENT and manifest.parent is not None:
        return True
    stage = stage_of(name)
    record = manifest.stages.get(stage) if stage else None
    return record is not None and record.result is None


def runs_code(names: Iterable[str], run: Path | None) -> list[str]:
    """Those of `names` that other programs would run, or unpickle; only Unsloth's own states hold pickles.

    Args:
        run: the folder in which to look at how they begin and at their modes; None: the names alone are at hand.
    """
    found = set()
    for name in names:
        lower = name.lower().rstrip(" .")
        if lower.endswith(RUNS_CODE) or (
            "/resume/checkpoint-" not in name
            and (lower.endswith(PICKLED) or (run is not None and _is_program(run / name)))
        ):
            found.add(name)
    return sorted(found)


def _is_program(file: Path) -> bool:
    try:
        with open_plain(file) as f:
            return bool(os.fstat(f.fileno()).st_mode & 0o111) or f.read(4).startswith(PROGRAM_STARTS)
    except (OSError, UnsafePathError):  # named as what it is by the other checks
        return False


def files_in(run: Path) -> Iterator[tuple[str, bool]]:
    """(name relative to the run, whether it is a symbolic link) of everything in it; links are not followed."""
    for folder, folders, files in os.walk(run):
        here = Path(folder)
        for name in [*files, *(n for n in folders if (here / n).is_symlink())]:
            yield (here / name).relative_to(run).as_posix(), (here / name).is_symlink()
