"""A control plane with a tiny Llama on its Hub under the default's name, and a clone of the project in which commands are typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.modal_guide import LLAMA, TOKEN, Cloud, make_clone
from helpers.modal_local import ControlPlane


@pytest.fixture(scope="module")
def make_cloud(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Makes a control plane, with the dataset and the secret in place or without, and a clone where the dataset was exported or not."""
    planes = []
    with_dataset = make_clone(tmp_path_factory.mktemp("exported") / "noesis")
    subprocess.run(
        [sys.executable, "scripts/export_for_modal.py"],
        cwd=with_dataset,
        env=os.environ | {"PYTHONPATH": str(with_dataset / "src")},
        check=True,
        capture_output=True,
    )

    def make(*, ready: bool = True, exported: bool = True) -> Cloud:
        clone = with_dataset if exported else make_clone(tmp_path_factory.mktemp("clone") / "noesis")
        plane = ControlPlane(hidden=[clone]).__enter__()
        planes.append(plane)
        plane.hub.add(LLAMA, tiny_model, gated=True)
        plane.hub.accepted.add(TOKEN)
        cloud = Cloud(plane, clone)
        if ready:
            shutil.copytree(clone / "data" / "training" / "exports", cloud.volume / "dataset")
            plane.secret("huggingface-token", HF_TOKEN=TOKEN)
        return cloud

    yield make
    for plane in planes:
        plane.__exit__()
