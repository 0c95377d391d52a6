"""Training in the cloud through the real `modal` command, against the control plane of tests/modal_local, with a tiny Llama.

The commands are those of the guide, typed in a clone of the project that holds 24 of its examples. The model is downloaded under the name
of the default, meta-llama/Llama-3.1-8B-Instruct, from a Hub on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.modal_guide import GUIDE, SMALLER
from helpers.modal_local import ControlPlane, Fault
from helpers.modal_local.patches import OUT_OF_MEMORY, SLOW_SAVING, patch
from helpers.project import ROOT

pytestmark = pytest.mark.slow
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
VOLUME = "noesis-training-data"
RUN = ("run", "scripts/modal_train.py")
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project with two examples of each file, in a folder of its own."""
    folder = tmp_path_factory.mktemp("clone") / "noesis"
    for name in ("src", "scripts", "data"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "exports")
        )
    for file in ROOT.glob("constraints*.txt"):
        shutil.copy(file, folder)
    for file in (folder / "data" / "training").glob("philosophical*/*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    for file in (folder / "data" / "training").glob("*_config.yaml"):
        text = file.read_text(encoding="utf-8")
        for pattern, line in SMALLER.items():
            text = re.sub(pattern, line, text, flags=re.M)
        file.write_text(text, encoding="utf-8")
    subprocess.run(
        [sys.executable, "scripts/export_for_modal.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        check=True,
        capture_output=True,
    )
    return folder


class Cloud:
    """A control plane, and a clone in which commands are typed."""

    def __init__(self, plane: ControlPlane, clone: Path) -> None:
        self.plane, self.clone = plane, clone
        self.env = {"PYTHONPATH": str(clone / "src")}

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line as typed in a shell."""
        program, *words = shlex.split(line)
        if program == "modal":
            return self.plane.modal(*words, cwd=self.clone, env=self.env)
        command = [sys.executable if program == "python" else program, *words]
        return subprocess.run(command, cwd=self.clone, env=self.plane.env | self.env, capture_output=True, text=True)

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


@pytest.fixture(scope="module")
def make_cloud(clone: Path, tiny_model: Path) -> Iterator:
    """Makes a control plane with the dataset and the secret in place, and the model on its Hub."""
    planes = []

    def make(*, ready: bool = True) -> Cloud:
        plane = ControlPlane(hidden=[clone]).__enter__()
        planes.append(plane)
        plane.hub.add(LLAMA, tiny_model, gated=True)
        plane.hub.accepted.add("hf_accepted")
        cloud = Cloud(plane, clone)
        if ready:
            shutil.copytree(clone / "data" / "training" / "exports", cloud.volume / "dataset")
            plane.secret("huggingface-token", HF_TOKEN="hf_accepted")
        return cloud

    yield make
    for plane in planes:
        plane.__exit__()


@pytest.fixture(scope="module")
def guide(make_cloud) -> tuple[Cloud, dict[str, subprocess.CompletedProcess[str]]]:
    """The guide's commands typed one after the other, up to the first that fails."""
    cloud = make_cloud(ready=False)
    cloud.plane.names_of_runs = True  # the service finds apps by name once they were deployed: see docs/modal.md
    done: dict[str, subprocess.CompletedProcess[str]] = {}
    for line in GUIDE.split("\n")[1:-1]:
        done[line] = cloud.type(line)
        if done[line].returncode:
            break
    return cloud, done


def test_every_command_of_the_guide_works(guide) -> None:
    _, done = guide
    for line, result in done.items():
        assert result.returncode == 0, f"{line}\n{result.stdout[-5000:]}\n{result.stderr[-3000:]}"
    assert done["modal volume ls noesis-training-data /dataset"].stdout.split() == [
        "dataset/eval.jsonl",
        "dataset/statistics.json",
        "dataset/train.jsonl",
    ]
    assert "noesis-training-data" in done["modal volume list"].stdout
    assert re.search(
        r"merge +1 +0\.0% +1 +0", done["modal app stats noesis-philosophical-training"].stdout
    )  # of the newest, --merge-only
    assert "report.html" in done["modal app logs noesis-philosophical-training"].stdout


def test_what_lies_on_the_volume_afterwards(guide) -> None:
    cloud, _ = guide
    volume = cloud.volume
    for path in (
        *(f"checkpoints/epoch_{n}/{ADAPTER}" for n in range(3)),
        "merged/noesis-philosopher-v1/model.safetensors",
        "report.html",
        "dataset/train.jsonl",
    ):
        assert (volume / path).is_file(), path
    assert len(list((volume / "gguf").glob("noesis-philosopher-v1-f16.gguf"))) == 1
    assert json.loads((volume / "config.json").read_text())["training"]["num_train_epochs"] == 3
    archived = list((volume / "runs").iterdir())  # the quick test, whole
    assert len(archived) == 1
    assert (archived[0] / "checkpoints" / "epoch_0" / ADAPTER).is_file()
    assert (archived[0] / "report.html").is_file()
    assert not (archived[0] / "checkpoints" / "epoch_1").exists()
    rows = [json.loads(line) for line in (volume / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_the_download_is_byte_for_byte_what_the_volume_holds(guide) -> None:
    cloud, _ = guide
    there, here = (
        cloud.volume / "merged" / "noesis-philosopher-v1",
        cloud.clone / "model_output" / "noesis-philosopher-v1",
    )
    names = sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file())
    assert "model.safetensors" in names
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_no_secret_is_kept(guide) -> None:
    cloud, _ = guide
    assert all(b"hf_accepted" not in p.read_bytes() for p in cloud.volume.rglob("*") if p.is_file())
    assert "hf_accepted" not in cloud.plane.text


def test_doctor_watch_cost_and_pull_after_the_guide(guide, tmp_path: Path) -> None:
    cloud, _ = guide
    hub = {"HF_TOKEN": "hf_accepted", "HF_ENDPOINT": f"{cloud.plane.store.url}/hub", "HF_HUB_OFFLINE": "0"}
    said = cloud.noesis("doctor", **hub)
    assert "MISSING" not in said
    for name in (
        "Modal token",
        f"volume {VOLUME}",
        "secret huggingface-token",
        "dataset on the volume",
        f"licence of {LLAMA}",
    ):
        assert re.search(rf"^  ok +{name}", said, re.M), said
    assert "hf_accepted" not in said
    assert "Where everything is" in cloud.noesis("watch", "--once")
    refused = json.loads(cloud.noesis("cost", "--json"))
    assert refused["billed_usd"] is None
    assert {"train", "judge", "merge"} <= {row["stage"] for row in refused["stages"]}
    assert refused["metered_usd"] > 0
    target = tmp_path / "pulled"
    cloud.noesis("pull", str(target))
    for path in (
        f"checkpoints/epoch_2/{ADAPTER}",
        "merged/noesis-philosopher-v1/model.safetensors",
        "manifest.json",
        "report.html",
    ):
        assert (target / path).read_bytes() == (cloud.volume / path).read_bytes(), path


def test_doctor_says_what_to_type(make_cloud) -> None:
    cloud = make_cloud(ready=False)
    said = cloud.noesis("doctor", code=1, MODAL_TOKEN_ID="")
    assert "modal token new" in said
    assert f"modal volume create {VOLUME}" in cloud.noesis("doctor", code=1)
    cloud.plane.volume(VOLUME)
    hub = {"HF_TOKEN": "hf_not_yet", "HF_ENDPOINT": f"{cloud.plane.store.url}/hub", "HF_HUB_OFFLINE": "0"}
    said = cloud.noesis("doctor", code=1, **hub)
    assert "modal secret create huggingface-token HF_TOKEN=" in said
    assert f"modal volume put {VOLUME} data/training/exports /dataset" in said
    assert f"accept it at https://huggingface.co/{LLAMA}" in said


def test_what_the_functions_ask_of_modal(guide) -> None:
    plane = guide[0].plane
    train, judge, merge = (plane.definition(name) for name in ("train", "judge", "merge"))
    assert (train.gpus[0], judge.gpus, merge.gpus) == ("L40S", ["A10"], [])
    for function in (train, judge, merge):
        d = function.definition
        assert d.retry_policy.retries == 10
        assert d.single_use_containers
        assert 0 < function.timeout <= 86_400
        assert "/data" in {mount.mount_path for mount in d.volume_mounts}
    assert {t.function.gpus[0] for t in plane.tasks_of("train")} == {"L40S"}
    assert merge.definition.resources.ephemeral_disk_mb > 0
    install = " ".join(plane.mounts.commands(train.definition.image_id))
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().split()
        if line.startswith(("torch==", "transformers==", "trl==", "peft==", "bitsandbytes=="))
    ]
    assert len(pins) == 5
    assert all(pin in install for pin in pins)


@pytest.mark.timing
def test_a_run_taken_away_again_and_again_ends_with_the_same_files(guide, make_cloud) -> None:
    undisturbed, done = guide
    assert done["modal run scripts/modal_train.py --epochs 3"].returncode == 0
    cloud = make_cloud()
    plane = cloud.plane
    plane.extra_files["/root/sitecustomize.py"] = patch("noesis.training.state.resumable", SLOW_SAVING)
    steps = "noesis-*/*/metrics.jsonl"  # in the container's temporary folder: 6 steps in all, 2 an epoch
    taken = [
        plane.inject(Fault("train", "kill", file=steps, lines=1)),  # in mid-epoch, without a word
        plane.inject(Fault("train", file=steps, lines=3)),  # in mid-epoch, with time to save
        plane.inject(Fault("train", "kill", log="SAVING")),  # while a state is being written
        plane.inject(Fault("train", "kill", before_commit=7)),  # while something is published
        plane.inject(Fault("train", file=steps, lines=5)),
    ]
    others = [plane.inject(Fault("merge", "kill", before_commit=2)), plane.inject(Fault("conduct", after_commits=4))]
    first = plane.start(*RUN, "--epochs", "3", cwd=cloud.clone, env=cloud.env)
    wait(lambda: plane.tasks_of("train"), 300)
    second = cloud.run("--epochs", "3", code=1)  # two runs at once
    assert "another run is using this volume" in second
    said = first.communicate(timeout=280)[0]
    assert first.returncode == 0, said[-5000:]
    assert [fault.struck for fault in (*taken, *others)] == [1] * 7
    assert len(plane.tasks_of("train")) == 6
    for path in (
        *(f"checkpoints/epoch_{n}/{ADAPTER}" for n in range(3)),
        "merged/noesis-philosopher-v1/model.safetensors",
        "gguf/noesis-philosopher-v1-f16.gguf",
    ):
        assert (cloud.volume / path).read_bytes() == (undisturbed.volume / path).read_bytes(), path
    assert re.search(r"training was preempted [45] times and resumed each time", said)
    assert not list(cloud.volume.rglob("*.part"))


def test_what_is_missing_is_said_with_what_to_type(make_cloud) -> None:
    cloud = make_cloud(ready=False)
    said = cloud.run(code=1, env={"MODAL_TOKEN_ID": ""})
    assert "modal token new" in said
    assert "modal secret create huggingface-token HF_TOKEN=" in cloud.run(code=2)
    cloud.plane.secret("huggingface-token", HF_TOKEN="hf_not_yet")
    said = cloud.run(code=2)
    assert "Dataset not found" in said
    assert "modal volume put noesis-training-data data/training/exports /dataset" in said
    shutil.copytree(cloud.clone / "data" / "training" / "exports", cloud.volume / "dataset")
    said = cloud.run(code=1)
    assert "Model not found" in said
    assert f"https://huggingface.co/{LLAMA}" in said
    train = cloud.volume / "dataset" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"a", b"e", 1))
    said = cloud.run(code=1)
    assert "dataset on the volume is not complete" in said
    assert "--force" in said
    assert not (cloud.volume / "checkpoints").exists()


def test_too_little_memory_names_the_two_keys(make_cloud) -> None:
    cloud = make_cloud()
    cloud.plane.extra_files["/root/sitecustomize.py"] = patch("noesis.training.backends.trl_run", OUT_OF_MEMORY)
    said = cloud.run("--epochs", "1", code=1)
    assert "per_device_train_batch_size: 1" in said
    assert "gradient_accumulation_steps: 8" in said
    assert len(cloud.plane.tasks_of("train")) == 1  # an error that comes again is not paid for again


@pytest.mark.timing
def test_ctrl_c_then_the_cap_then_more_money_and_it_goes_on(make_cloud) -> None:
    cloud = make_cloud()
    cloud.plane.extra_files["/root/sitecustomize.py"] = patch(
        "noesis.cloud.volume.lease", "module.LEAVING_S = 3.0"
    )  # the next command waits so long
    first = cloud.plane.start(*RUN, "--epochs", "2", cwd=cloud.clone, env=cloud.env)
    wait(lambda: any(steps_taken(t) for t in cloud.plane.tasks_of("train")), 300)
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=300)
    wait(lambda: not any(t.alive for t in cloud.plane.tasks.values()), 300)
    assert not (cloud.volume / "report.html").exists()
    rows = len((cloud.volume / "metrics.jsonl").read_text().splitlines())  # what was done by then
    time.sleep(2)
    said = cloud.run("--epochs", "2", "--max-usd", "0.0000001", code=5)
    assert "--max-usd" in said
    assert not cloud.plane.tasks_of("judge")
    said = cloud.run("--epochs", "2", "--max-usd", "30")
    assert [json.loads(line)["step"] for line in (cloud.volume / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]
    assert rows >= 1
    assert (cloud.volume / "report.html").is_file()
    assert not (cloud.volume / "runs").exists()  # nothing was begun again
    assert "was preempted" in said


def test_dry_run_starts_nothing(make_cloud) -> None:
    cloud = make_cloud()
    said = cloud.run("--dry-run")
    assert re.search(r"cost +\d+\.\d\d USD", said)
    assert "L40S" in said
    assert not cloud.plane.tasks
    assert not (cloud.volume / "manifest.json").exists()


@pytest.mark.full
def test_the_embedded_model_trains_through_the_cloud(make_cloud) -> None:
    cloud = make_cloud()
    said = cloud.run("--model", "smollm2", "--epochs", "1", "--max-examples", "16", seconds=1500)
    assert "noesis-philosopher-v1-f16.gguf" in said
    judged = json.loads((cloud.volume / "tribunal" / "summary.json").read_text())
    before, after = (judged["preference"][who]["held_out_loss"] for who in ("base", "tuned"))
    assert after < before
    assert (cloud.volume / "merged" / "noesis-philosopher-v1" / "model.safetensors").stat().st_size > 100e6


def steps_taken(task) -> int:
    """Lines of metrics.jsonl in a container's own copy of the run."""
    return sum(file.read_bytes().count(b"\n") for file in (task.folder / "tmp").glob("noesis-*/*/metrics.jsonl"))


def wait(until, seconds: float = 120.0) -> None:
    """Until it is so, or fail."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
