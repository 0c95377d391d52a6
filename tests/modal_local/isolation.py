"""What a container sees: the uploaded files, its copies of the volumes, the installed packages without the checkout.

`Namespace` gives it paths as in the cloud (/root, /data, …) through `unshare`; it needs neither root nor Docker, but a kernel that
allows user namespaces. Where that is refused (some CI containers), `Plain` puts the same folders elsewhere and says where by
NOESIS_VOLUME_ROOT and NOESIS_PROJECT; environment values of the image that name a mounted path are rewritten likewise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ENTER = Path(__file__).with_name("enter.py")
CHECKOUT = Path(__file__).resolve().parents[2]
HIDDEN = tuple(str(CHECKOUT / name) for name in ("src", "scripts", "data", "docs"))
PROJECT_PACKAGES = ("noesis", "__editable__")
SITES = [p for p in sys.path if p.endswith("site-packages") and Path(p).is_dir()]


@dataclass
class Box:
    """A container's file system, before it starts.

    Attributes:
        folder: the container's own folder on this machine.
        files: the uploaded files, as a tree from the container's root.
        volumes: where a volume is mounted → its copy on this machine.
        visible: further paths of this machine that the body may read (a tiny model, a cache).
    """

    folder: Path
    files: Path
    volumes: dict[str, Path]
    env: dict[str, str]
    cwd: str
    visible: list[Path] = field(default_factory=list)


def farm(folder: Path, site: str, target: str) -> None:
    """Links to everything in `site` but the project itself; `target` is where the links find it."""
    folder.mkdir(parents=True)
    for name in os.listdir(site):
        if not name.startswith(PROJECT_PACKAGES):
            (folder / name).symlink_to(f"{target}/{name}")


class Namespace:
    """Containers in a mount namespace."""

    name = "namespace"

    def __init__(self, folder: Path, unshare: list[str]) -> None:
        self.unshare = unshare
        self.binds = []
        for i, site in enumerate(SITES):
            farm(folder / f"site{i}", site, f"/.site{i}")
            self.binds += [(site, f"/.site{i}"), (str(folder / f"site{i}"), site)]

    def command(self, box: Box) -> tuple[list[str], dict[str, str], str]:
        """The command that runs the container, its environment, and where to start it."""
        own = {"root"} | {path.name for path in box.files.iterdir()} | {Path(p).parts[1] for p in box.volumes}
        binds = [(str(box.files / name), f"/{name}") for name in own if (box.files / name).is_dir()]
        for kept in (sys.prefix, sys.base_prefix, str(box.folder), *map(str, box.visible)):
            if Path(kept).parts[1] in own:
                binds.append((kept, kept))
        binds += self.binds + sorted(((str(copy), path) for path, copy in box.volumes.items()), key=lambda b: len(b[1]))
        root = box.folder / "rootfs"
        root.mkdir()
        argv = [sys.executable, "-m", "modal._container_entrypoint"]
        empty = [h for h in HIDDEN if not any(str(v).startswith(h) for v in box.visible) and not sys.prefix.startswith(h)]
        plan = {"root": str(root), "own": sorted(own), "binds": binds, "empty": empty, "cwd": box.cwd, "argv": argv}
        file = box.folder / "plan.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        env = box.env | {"PYTHONPATH": "/root", "HOME": "/root"}
        return [*self.unshare, sys.executable, "-I", "-S", str(ENTER), str(file)], env, "/"


class Plain:
    """Containers as plain processes: the same folders, under other names."""

    name = "plain"

    def __init__(self, folder: Path) -> None:
        self.sites = []
        for i, site in enumerate(SITES):
            farm(folder / f"site{i}", site, site)
            self.sites.append(str(folder / f"site{i}"))

    def command(self, box: Box) -> tuple[list[str], dict[str, str], str]:
        """As `Namespace.command`."""
        places = {f"/{p.name}": str(p) for p in box.files.iterdir()} | {path: str(copy) for path, copy in box.volumes.items()}
        home = places.setdefault("/root", str(box.files / "root"))
        env = {}
        for key, value in box.env.items():
            at = max((p for p in places if value == p or value.startswith(p + "/")), key=len, default="")
            env[key] = places[at] + value[len(at) :] if at else value
        env |= {"PYTHONPATH": os.pathsep.join([home, *self.sites]), "HOME": home}
        if "/data" in places:
            env["NOESIS_VOLUME_ROOT"] = places["/data"]
        if "/project" in places:
            env["NOESIS_PROJECT"] = places["/project"]
        return [sys.executable, "-S", "-m", "modal._container_entrypoint"], env, home


def choose(folder: Path, wanted: str = "") -> Namespace | Plain:
    """The best isolation that works here, or the one asked for (also by MODAL_LOCAL_ISOLATION)."""
    wanted = wanted or os.environ.get("MODAL_LOCAL_ISOLATION", "")
    for unshare in (["unshare", "-rm"], ["unshare", "-m"]):
        if wanted != "plain" and _works(unshare, folder):
            return Namespace(folder / "sites", unshare)
    if wanted == "namespace":
        raise RuntimeError("MODAL_LOCAL_ISOLATION=namespace, but `unshare -rm` is refused here")
    return Plain(folder / "sites")


def _works(unshare: list[str], folder: Path) -> bool:
    root = folder / "try"
    root.mkdir(parents=True, exist_ok=True)
    plan = {"root": str(root), "own": [], "binds": [], "empty": [], "cwd": "/", "argv": ["/bin/true"]}
    file = folder / "try.json"
    file.write_text(json.dumps(plan), encoding="utf-8")
    try:
        return subprocess.run([*unshare, sys.executable, "-I", "-S", str(ENTER), str(file)], capture_output=True).returncode == 0
    except FileNotFoundError:  # no `unshare` on this machine
        return False
