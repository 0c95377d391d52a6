"""`noesis doctor` and `noesis clean`: what is here, what is missing, what can be freed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from noesis.core.console import size
from noesis.core.device import detect
from noesis.core.errors import NoesisError
from noesis.core.project import find_project
from noesis.llm.embedded import embedded_gguf

NEEDED_DISK = 4e9  # a demo run, its caches and room to spare


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    ok: bool
    needed: bool = True
    remedy: str = ""


def run_checks(project: Path | None) -> list[Check]:
    """Everything that a run depends on."""
    device = detect()
    free = shutil.disk_usage(Path.cwd()).free
    checks = [
        Check(
            "Python",
            platform.python_version(),
            (3, 11) <= sys.version_info[:2] <= (3, 13),
            True,
            "use Python 3.11, 3.12 or 3.13",
        ),
        Check(
            "device",
            f"{device.name} ({device.kind}, {device.threads} threads{', bfloat16' if device.bf16 else ''})",
            True,
        ),
        Check(
            "memory",
            f"{size(device.memory_bytes)} free",
            device.memory_bytes > 5e9,
            False,
            "the demo needs about 4 GB: close other programs",
        ),
        Check(
            "disk", f"{size(free)} free", free > NEEDED_DISK, True, f"the demo needs {size(NEEDED_DISK)}: noesis clean"
        ),
    ]
    checks += [_package(name, extra) for extra, names in _PACKAGES.items() for name in names]
    checks += [
        _embedded(),
        _token("HF_TOKEN", "for gated models such as Llama-3.1", "export HF_TOKEN=hf_…"),
        _modal_token(),
        _project(project),
    ]
    return checks


_PACKAGES = {
    "train": ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets"),
    "gguf": ("gguf", "xllamacpp"),
    "modal": ("modal",),
}


def _package(name: str, extra: str) -> Check:
    try:
        return Check(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        return Check(
            name,
            "not installed",
            False,
            extra != "modal",
            f"make setup, or pip install -c constraints.txt 'noesis[{extra}]'",
        )


def _embedded() -> Check:
    try:
        return Check("embedded model", embedded_gguf().name, True)
    except NoesisError as error:
        return Check("embedded model", "not installed", False, True, str(error))


def _token(variable: str, why: str, remedy: str) -> Check:
    """Whether a secret is set; never what it is."""
    return Check(
        variable,
        "set" if os.environ.get(variable) else f"not set ({why})",
        bool(os.environ.get(variable)),
        False,
        remedy,
    )


def _modal_token() -> Check:
    here = bool(os.environ.get("MODAL_TOKEN_ID")) or (Path.home() / ".modal.toml").is_file()
    return Check(
        "Modal token", "found" if here else "not found (for training in the cloud)", here, False, "modal token new"
    )


def _project(path: Path | None) -> Check:
    try:
        found = find_project(path)
    except NoesisError as error:
        return Check("project", "none", False, False, str(error))
    from noesis.constitution.document import load_constitution
    from noesis.core.config import load_config

    try:
        load_config(found)
        constitution = load_constitution(found.constitution)
    except NoesisError as error:
        return Check("project", str(found.root), False, True, str(error))
    return Check(
        "project",
        f"{found.root}, constitution {constitution.version} with {len(constitution.principles)} principles",
        True,
    )
