"""`noesis doctor`: what is installed on this machine, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from noesis import __version__
from noesis.core.console import command, size
from noesis.core.device import Device, detect
from noesis.core.distribution import DISTRIBUTION, install_command, namesake
from noesis.core.errors import NoesisError
from noesis.core.i18n import _
from noesis.core.machine.folders import cache_folder, expanded
from noesis.core.project import find_project
from noesis.llm.embedded import embedded_gguf

PYTHON_VERSIONS = ((3, 11), (3, 13))  # oldest and newest
NEEDED_MEMORY = 5e9  # bytes: the demo's 4 GB and something to spare
NEEDED_DISK = 4e9  # bytes: a demo run, its caches and something to spare
PACKAGES = {  # by extra
    "train": ("torch", "transformers", "peft", "accelerate", "bitsandbytes"),
    "gguf": ("gguf", "xllamacpp"),
    "modal": ("modal",),
}
OPTIONAL_EXTRAS = ("modal",)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    needed: without it nothing works; otherwise only what `found` or `remedy` says
    remedy: what to do if it is not ok
    """

    name: str
    found: str
    ok: bool
    needed: bool = True
    remedy: str = ""


def run_checks(project: Path | None) -> list[Check]:
    """Everything that a run depends on."""
    device = detect()
    return [
        _python(),
        _installation(),
        _device(device),
        _memory(device),
        _disk(),
        _cache(),
        *(_package(name, extra) for extra, names in PACKAGES.items() for name in names),
        _embedded_model(),
        _hub_token(),
        _modal_token(),
        _project(project),
    ]


def _python() -> Check:
    oldest, newest = PYTHON_VERSIONS
    ok = oldest <= sys.version_info[:2] <= newest
    return Check("Python", platform.python_version(), ok, remedy=_("use Python 3.11, 3.12 or 3.13"))


def _installation() -> Check:
    """That no other package writes over this one's files."""
    other = namesake()
    return Check(
        DISTRIBUTION,
        __version__ if other is None else _("another package of the same import name is installed beside it"),
        ok=other is None,
        remedy=other or "",
    )


def _device(device: Device) -> Check:
    bf16 = ", bfloat16" if device.bf16 else ""
    return Check(
        _("device"),
        _(
            "{name} ({kind}, {threads} threads{bf16})",
            name=device.name,
            kind=device.kind,
            threads=device.threads,
            bf16=bf16,
        ),
        ok=True,
    )


def _memory(device: Device) -> Check:
    return Check(
        _("memory"),
        _("{memory_bytes} free", memory_bytes=size(device.memory_bytes)),
        ok=device.memory_bytes > NEEDED_MEMORY,
        needed=False,
        remedy=_("the demo needs about 4 GB: close other programs"),
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    remedy = _(
        "the demo needs {needed_disk}: make room with  {command}",
        needed_disk=size(NEEDED_DISK),
        command=command("clean"),
    )
    return Check(_("disk"), _("{free} free", free=size(free)), ok=free > NEEDED_DISK, remedy=remedy)


def _cache() -> Check:
    """Where converted models and judges' replies are kept."""
    try:
        folder = cache_folder()
    except NoesisError as error:
        return Check(_("cache"), _("no folder"), ok=False, remedy=str(error))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Check(
        _("cache"),
        str(folder) if ok else _("{folder}, not writable", folder=folder),
        ok,
        remedy=_("set NOESIS_CACHE to another folder"),
    )


def _package(name: str, extra: str) -> Check:
    try:
        return Check(name, importlib.metadata.version(name), ok=True)
    except importlib.metadata.PackageNotFoundError:
        remedy = _("{install_command}, or in a checkout  make setup", install_command=install_command(extra))
        return Check(name, _("not installed"), ok=False, needed=extra not in OPTIONAL_EXTRAS, remedy=remedy)


def _embedded_model() -> Check:
    try:
        return Check(_("embedded model"), embedded_gguf().name, ok=True)
    except NoesisError as error:
        return Check(_("embedded model"), _("not installed"), ok=False, remedy=str(error))


def _hub_token() -> Check:
    """Whether the token is set; never what it is."""
    found = bool(os.environ.get("HF_TOKEN"))
    state = "set" if found else _("not set (for gated models such as Llama-3.1)")
    return Check("HF_TOKEN", state, found, needed=False, remedy="export HF_TOKEN=hf_…")


def _modal_token() -> Check:
    found = bool(os.environ.get("MODAL_TOKEN_ID")) or expanded("~/.modal.toml").is_file()
    state = "found" if found else _("not found (for training in the cloud)")
    return Check(_("Modal token"), state, found, needed=False, remedy="modal token new")


def _project(path: Path | None) -> Check:
    try:
        project = find_project(path)
    except NoesisError as error:
        return Check(_("project"), _("none"), ok=False, needed=False, remedy=str(error))
    from noesis.constitution.document import load_constitution
    from noesis.core.config import load_config

    try:
        load_config(project)
        constitution = load_constitution(project.constitution)
    except NoesisError as error:
        return Check(_("project"), str(project.root), ok=False, remedy=str(error))
    principles = len(constitution.principles)
    found = _(
        "{root}, constitution {version} with {principles} principles",
        root=project.root,
        version=constitution.version,
        principles=principles,
    )
    return Check(_("project"), found, ok=True)
