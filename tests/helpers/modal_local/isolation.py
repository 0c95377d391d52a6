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

from .packages import OURS, allowed

ENTER = Path(__file__).with_name("enter.py")
CHECKOUT = Path(__file__).resolve().parents[3]
HIDDEN = tuple(CHECKOUT / name for name in ("src", "scripts", "data", "docs"))
# without `site`, which would find the editable install; what it does for sitecustomize is done here
START = "import importlib.util as u, runpy; u.find_spec('sitecustomize') and __import__('sitecustomize'); runpy.run_module('modal._container_entrypoint', run_name='__main__', alter_sys=True)"
SITES = [p for p in sys.path if p.endswith("site-packages") and Path(p).is_dir()]


@dataclass
class Box:
    """A container's file system, before it starts.

    Attributes:
        folder: the container's own folder on this machine.
        files: the uploaded files, as a tree from the container's root.
        volumes: where a volume is mounted → its copy on this machine.
        packages: what its image installs; empty: everything.
        visible: further paths of this machine that the body may read (a tiny model, a cache).
        hidden: folders of this machine that it finds empty, beside the checkout's.
    """

    folder: Path
    files: Path
    volumes: dict[str, Path]
    env: dict[str, str]
    cwd: str
    packages: frozenset[str] = frozenset()
    visible: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)


class Sites:
    """Stand-ins for site-packages, one for each set of packages: links to what a container may import, and to nothing of the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[frozenset[str], list[Path]] = {}

    def of(self, packages: frozenset[str], places: list[str]) -> list[Path]:
        """A folder for each of SITES, whose links look into `places`."""
        if packages not in self.made:
            entries, made = allowed(packages), []
            for i, (site, place) in enumerate(zip(SITES, places, strict=True)):
                folder = self.folder / f"{len(self.made)}-{i}"
                folder.mkdir(parents=True)
                for name in os.listdir(site):
                    if not name.startswith(OURS) and (entries is None or name in entries):
                        (folder / name).symlink_to(f"{place}/{name}")
                made.append(folder)
            self.made[packages] = made
        return self.made[packages]


class Namespace:
    """Containers in a mount namespace."""

    name = "namespace"

    def __init__(self, folder: Path, unshare: list[str]) -> None:
        self.unshare, self.sites = unshare, Sites(folder)

    def command(self, box: Box) -> tuple[list[str], dict[str, str], str]:
        """The command that runs the container, its environment, and where to start it."""
        own = {"root"} | {path.name for path in box.files.iterdir()} | {Path(p).parts[1] for p in box.volumes}
        binds = [(str(box.files / name), f"/{name}") for name in own if (box.files / name).is_dir()]
        for kept in (sys.prefix, sys.base_prefix, str(box.folder), *map(str, box.visible)):
            if Path(kept).parts[1] in own:
                binds.append((kept, kept))
        for i, (site, folder) in enumerate(
            zip(SITES, self.sites.of(box.packages, [f"/.site{i}" for i in range(len(SITES))]), strict=True)
        ):
            binds += [(site, f"/.site{i}"), (str(folder), site)]
        binds += sorted(((str(copy), path) for path, copy in box.volumes.items()), key=lambda b: len(b[1]))
        root = box.folder / "rootfs"
        root.mkdir()
        argv = [sys.executable, "-m", "modal._container_entrypoint"]
        empty = [str(h) for h in (*HIDDEN, *box.hidden) if not sys.prefix.startswith(str(h))]
        plan = {"root": str(root), "own": sorted(own), "binds": binds, "empty": empty, "cwd": box.cwd, "argv": argv}
        file = box.folder / "plan.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        env = box.env | {"PYTHONPATH": "/root", "HOME": "/root"}
        return [*self.unshare, sys.executable, "-I", "-S", str(ENTER), str(file)], env, "/"


class Plain:
    """Containers as plain processes: the same folders, under other names."""

    name = "plain"

    def __init__(self, folder: Path) -> None:
        self.sites = Sites(folder)

    def command(self, box: Box) -> tuple[list[str], dict[str, str], str]:
        """As `Namespace.command`."""
        places = {f"/{p.name}": str(p) for p in box.files.iterdir()} | {
            path: str(copy) for path, copy in box.volumes.items()
        }
        home = places.setdefault("/root", str(box.files / "root"))
        env = {}
        for key, value in box.env.items():
            at = max((p for p in places if value == p or value.startswith(p + "/")), key=len, default="")
            env[key] = places[at] + value[len(at) :] if at else value
        env |= {"PYTHONPATH": os.pathsep.join([home, *map(str, self.sites.of(box.packages, SITES))]), "HOME": home}
        if "/data" in places:
            env["NOESIS_VOLUME_ROOT"] = places["/data"]
        if "/project" in places:
            env["NOESIS_PROJECT"] = places["/project"]
        return [sys.executable, "-S", "-c", START], env, home


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
        return (
            subprocess.run(
                [*unshare, sys.executable, "-I", "-S", str(ENTER), str(file)], capture_output=True
            ).returncode
            == 0
        )
    except FileNotFoundError:  # no `unshare` on this machine
        return False
