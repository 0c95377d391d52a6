"""Runs a container's process in a file system of its own: `unshare -rm python -I -S enter.py plan.json`.

In a new mount namespace: an empty root, the machine's folders bound into it but for those that the container brings (/root, /data, …),
then the container's own folders, then chroot and exec. Nothing outside the namespace changes.
"""

import ctypes
import json
import os
import sys

BIND, REC = 4096, 16384
libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def bind(source: str, target: str) -> None:
    """`source` seen at `target`, which is made if it isn't there."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, "", BIND | REC)


def main() -> None:
    with open(sys.argv[1]) as f:
        plan = json.load(f)
    root = plan["root"]
    mount("none", root, "tmpfs", 0)
    for name in os.listdir("/"):
        path = f"/{name}"
        if name in plan["own"]:
            os.mkdir(root + path)
        elif os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        else:
            bind(path, root + path)
    for source, target in plan["binds"]:
        bind(source, root + target)
    for path in plan["empty"]:
        if os.path.isdir(root + path):
            mount("none", root + path, "tmpfs", 0)
    os.chroot(root)
    os.chdir(plan["cwd"])
    os.execv(plan["argv"][0], plan["argv"])


main()
