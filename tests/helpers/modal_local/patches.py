"""Code that containers run beside what was uploaded: for what can't be had here (a full card) or must last longer to be hit."""

from __future__ import annotations

OUT_OF_MEMORY = """
def full(*arguments):
    import torch

    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


module.run_trainer = full  # as if the GPU were full
"""
SLOW_SAVING = """
import time

write = module.write_tree


def slowly(folder, name, tree):
    if name == "optimizer":
        print("SAVING", flush=True)
        time.sleep(0.5)
    return write(folder, name, tree)


module.write_tree = slowly
"""

NO_FOLDER_SYNC = """
import errno
import os
import stat

sync = os.fsync


def fsync(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    sync(handle)


os.fsync = fsync  # as on a network file system, for every folder
"""


def patch(module: str, code: str) -> str:
    """A sitecustomize.py for the containers that runs `code` as soon as `module` is imported."""
    return f"""
import importlib.abc
import importlib.util
import sys


class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            exec({code!r}, {{"module": module}})

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patch())
"""
