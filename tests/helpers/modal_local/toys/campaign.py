"""Whole runs in the cloud without torch, each with one fault of Modal's control plane: what came out, and what it cost."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from helpers.modal_guide import RUN, TOKEN, VOLUME
from helpers.modal_local import ControlPlane, Fault, RpcFault
from helpers.modal_local.patches import NO_FOLDER_SYNC
from noesis.cloud.limits import orchestrator_limit, price_of
from noesis.cloud.request import request_from_options
from noesis.core.config import ModalSection

OPTIONS = ("--epochs", "2", "--judge", "none")
FILES = (
    "checkpoints/epoch_0/adapter_model.safetensors",
    "checkpoints/epoch_1/adapter_model.safetensors",
    "merged/noesis-philosopher-v1/model.safetensors",
    "gguf/noesis-philosopher-v1-f16.gguf",
    "report.html",
)
TOY_STAGES = Path(__file__).with_name("stages.py").read_text(encoding="utf-8") + NO_FOLDER_SYNC
SPEED = 20.0  # of its clocks, and of the plane's
BUSY = "another run is using this volume"


@dataclass(frozen=True)
class Outcome:
    """One run.

    end: "same" (as undisturbed), "clear" (one message, and the same command then ended as undisturbed), or "lost"
    usd: of all its containers, by the plane's clock
    said: the message, or what is wrong
    """

    end: str
    usd: float
    seconds: float
    said: str = ""


class Campaign:
    """Runs in the clone of a project whose dataset was exported; every one on a control plane of its own."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.expected: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []

    def undisturbed(self) -> Outcome:
        """A run without faults: what the others are compared with."""
        with self._plane() as plane:
            done = plane.modal(*RUN, *OPTIONS, cwd=self.clone, env=self._env, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr + plane.text
            self.expected = found_files(plane.volume(VOLUME))
            assert len(self.expected) == len(FILES)
            self.calls = [(c.name, plane.rpc_faults.caller(c.task_id)) for c in plane.calls]
            return Outcome("same", bill(plane), 0.0)

    def run(self, fault: RpcFault | Fault | None, *, seconds: float = 240.0, **settings: object) -> Outcome:
        """One run with a fault.

        Args:
            settings: attributes of the plane.
        """
        began = time.monotonic()
        with self._plane() as plane:
            for name, value in settings.items():
                setattr(plane, name, value)
            if fault is not None:
                plane.inject_rpc(fault) if isinstance(fault, RpcFault) else plane.inject(fault)
            end, said = self._run(plane, began + seconds)
            return Outcome(end, bill(plane), time.monotonic() - began, said)

    def _run(self, plane: ControlPlane, until: float) -> tuple[str, str]:
        try:
            code, said = self._type(plane, until)
            end = "same"
            if code:
                end, message = "clear", said.strip().splitlines()[-1] if said.strip() else ""
                if "Traceback (most recent call last)" in said or not message:
                    return "lost", f"no clear message (exit {code}): {said[-1500:]}"
                plane.rpc_faults.all.clear()
                plane.faults.all.clear()
                while code and time.monotonic() < until:  # until an earlier container's lease has run out
                    code, again = self._type(plane, until)
                    if code and BUSY not in again:
                        return "lost", f"{message}; the same command then: {again[-1500:]}"
                said = message
        except subprocess.TimeoutExpired as error:
            return "lost", f"it hangs: {error}; {plane.text[-1500:]}"
        found = found_files(plane.volume(VOLUME))
        if code or found != self.expected:
            return "lost", f"exit {code}, different files: {sorted(found)}"
        if doubles := interleaved(plane.text):
            return "lost", f"two trainers at once: {doubles}"
        return end, said if end == "clear" else ""

    def _type(self, plane: ControlPlane, until: float) -> tuple[int, str]:
        left = max(until - time.monotonic(), 5.0)
        done = plane.modal(*RUN, *OPTIONS, cwd=self.clone, env=self._env, timeout=left)
        return done.returncode, done.stdout + done.stderr

    @property
    def _env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.clone / "src")}

    def _plane(self) -> ControlPlane:
        plane = ControlPlane(hidden=[self.clone])
        plane.speed, plane.scaledown = SPEED, 0.1
        plane.extra_files["/root/sitecustomize.py"] = TOY_STAGES
        plane.secret("huggingface-token", HF_TOKEN=TOKEN)
        shutil.copytree(self.clone / "data" / "training" / "exports", plane.volume(VOLUME) / "dataset")
        return plane


def found_files(volume: Path) -> dict[str, bytes]:
    return {name: (volume / name).read_bytes() for name in FILES if (volume / name).is_file()}


def interleaved(text: str) -> list[str]:
    """Containers that trained on after another one had begun to."""
    turns = [task for task, _ in groupby(re.findall(r"^STEP \d+ (\S+)$", text, re.M))]
    return sorted({task for task in turns if turns.count(task) > 1})


def bill(plane: ControlPlane) -> float:
    """USD for all containers, by the plane's clock and the dearest cards."""
    section = ModalSection()
    request = request_from_options(section)
    total = 0.0
    for task in plane.tasks.values():
        name = task.function.name
        price = orchestrator_limit().usd_per_s if name == "conduct" else price_of(name, request, section)
        total += task.seconds * SPEED * price
    return total
