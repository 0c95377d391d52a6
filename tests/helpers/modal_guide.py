"""The commands of the set-up guide and of its page here, settings that make its run short, and a clone to type them in."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers.modal_local import ControlPlane
from helpers.project import ROOT, with_small_settings

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
VOLUME = "noesis-training-data"
RUN = ("run", "scripts/modal_train.py")
ADAPTER = "adapter_model.safetensors"
TOKEN = "hf_accepted"  # in place of the page's hf_xxxx

GUIDE = """
modal volume create noesis-training-data
python scripts/export_for_modal.py
modal volume put noesis-training-data data/training/exports /dataset
modal secret create huggingface-token HF_TOKEN=hf_xxxxxxxxxxxxx
modal volume list
modal volume ls noesis-training-data /dataset
modal run scripts/modal_train.py --epochs 1
modal run scripts/modal_train.py --epochs 3
modal run scripts/modal_train.py --test-only
modal run scripts/modal_train.py --merge-only
modal app logs noesis-philosophical-training
modal app stats noesis-philosophical-training
mkdir -p model_output && modal volume get noesis-training-data /merged/noesis-philosopher-v1 ./model_output
"""


SMALLER = {  # in training_config.yaml and lora_config.yaml of the clone: shorter runs, nothing else
    r"^  answers: \d+": "  answers: 1",
    r"^  max_new_tokens: \d+": "  max_new_tokens: 8",
    r"^  quantizations: .*": "  quantizations: [f16]",
    r"^  judges: .*": "  judges: []",
    r"^save_every: \S+": "save_every: 1 steps",
    r"^  eval_examples: \d+": "  eval_examples: 3",
    r"^r: \d+": "r: 4",
    r"^lora_alpha: \d+": "lora_alpha: 8",
}


def page_commands(page: str) -> list[str]:
    """What stands in the blocks of commands of a page of docs/, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def make_clone(folder: Path) -> Path:
    """A clone of the project with two examples of each file, and nothing exported yet."""
    for name in ("src", "scripts", "data"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "exports")
        )
    for file in ROOT.glob("constraints*.txt"):
        shutil.copy(file, folder)
    for file in (folder / "data" / "training").glob("philosophical*/*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    with_small_settings(folder)
    for file in (folder / "data" / "training").glob("*_config.yaml"):
        text = file.read_text(encoding="utf-8")
        for pattern, line in SMALLER.items():
            text = re.sub(pattern, line, text, flags=re.M)
        file.write_text(text, encoding="utf-8")
    return folder


class Cloud:
    """A control plane, and a clone in which commands are typed."""

    def __init__(self, plane: ControlPlane, clone: Path) -> None:
        self.plane, self.clone = plane, clone
        self.env = {"PYTHONPATH": str(clone / "src")}
        self.hub = {"HF_ENDPOINT": f"{plane.store.url}/hub", "HF_HUB_OFFLINE": "0"}

    def type(self, line: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A line as typed in a shell, in the clone or in another folder; of commands joined by &&, the last that ran."""
        real = {"modal": [sys.executable, "-m", "modal"], "python": [sys.executable]}
        real |= {"noesis": [sys.executable, "-m", "noesis"]}
        for part in line.split(" && "):
            program, *words = shlex.split(part)
            done = subprocess.run(
                [*real.get(program, [program]), *words],
                cwd=cwd or self.clone,
                env=self.plane.env | self.env,
                capture_output=True,
                text=True,
                timeout=900,
            )
            if done.returncode:
                break
        return done

    def run(self, *options: str, code: int = 0, env: dict[str, str] | None = None, seconds: float = 900.0) -> str:
        """`modal run scripts/modal_train.py OPTIONS`, what it printed; it must end with `code`."""
        done = self.plane.modal(*RUN, *options, cwd=self.clone, env=self.env | (env or {}), timeout=seconds)
        said = done.stdout + done.stderr
        assert done.returncode == code, f"exit {done.returncode}\n{said[-6000:]}"
        return said

    def noesis(self, *words: str, code: int = 0, **env: str) -> str:
        """`noesis cloud WORDS`, what it printed; it must end with `code`."""
        command = [sys.executable, "-m", "noesis", "cloud", *words]
        done = subprocess.run(
            command, cwd=self.clone, env=self.plane.env | self.env | env, capture_output=True, text=True
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if "--json" in words else done.stdout + done.stderr

    @property
    def volume(self) -> Path:
        return self.plane.volume(VOLUME)


def steps_taken(task) -> int:
    """Lines of metrics.jsonl in a container's own copy of the run."""
    return sum(file.read_bytes().count(b"\n") for file in (task.folder / "tmp").glob("noesis-*/*/metrics.jsonl"))


def wait(until, seconds: float = 120.0) -> None:
    """Until it is so, or fail."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
