"""docs/modal.md and docs/modal.pt-BR.md: the same commands in both, those of the seed's guide among them, and each is typed here.

They are typed with the real `modal` command against the control plane of tests/modal_local, in a clone of the project that holds 24 of
its examples; the model is a tiny Llama from a Hub on loopback.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.modal_guide import ADAPTER, GUIDE, LLAMA, RUN, TOKEN, VOLUME, Cloud, page_commands, wait
from helpers.modal_local import Fault
from helpers.modal_local.patches import SLOW_SAVING, patch
from helpers.project import ROOT

NOT_RUN = {"pip install modal", "modal token new"}  # they install, or open a browser


def test_both_languages_hold_the_same_commands_and_those_of_the_seed_guide():
    assert page_commands("modal.md") == page_commands("modal.pt-BR.md")
    assert set(GUIDE.strip().splitlines()) | NOT_RUN <= set(page_commands("modal.md"))


@pytest.fixture(scope="module")
def guide(make_cloud) -> tuple[Cloud, dict[str, subprocess.CompletedProcess[str]]]:
    """The page's commands typed one after the other, up to the first that fails."""
    cloud = make_cloud(ready=False, exported=False)
    cloud.plane.names_of_runs = True  # the service finds apps by name once they were deployed: see docs/modal.md
    cloud.env |= cloud.hub | {"HF_TOKEN": TOKEN}
    done: dict[str, subprocess.CompletedProcess[str]] = {}
    for line in page_commands("modal.pt-BR.md"):
        if line not in NOT_RUN:
            done[line] = cloud.type(re.sub(r"hf_x+", TOKEN, line))
            if done[line].returncode:
                break
    return cloud, done


@pytest.mark.slow
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
    assert "Nothing was built or started" in done["modal run scripts/modal_train.py --dry-run"].stdout
    trained = done["modal run scripts/modal_train.py --epochs 3"].stdout
    for words in (
        "epoch_0  held-out loss",
        "epoch_2  held-out loss",
        "Tribunal: UNDECIDED",
        "in all",
        "/merged/noesis-philosopher-v1",
    ):
        assert words in trained, words
    assert 0 < trained.index("close this terminal or its lid, the run saves and stops") < trained.index("  model ")
    assert re.search(r"its log:  modal app logs ap-\w+ -f$", trained, re.M)
    assert "close this terminal" not in done["modal run --detach scripts/modal_train.py --epochs 3"].stdout
    watched = done["noesis cloud watch --once"].stdout
    assert "done; done: export, plan, train, choose, dial, judge, merge, gguf, report" in watched
    assert "metered" in done["noesis cloud cost"].stdout


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_commands_of_the_summary_bring_the_files_into_a_fresh_folder(guide, tmp_path: Path) -> None:
    """Without the folder Modal's command wrote all files over each other into one, and said that it had finished."""
    cloud, done = guide
    said = done["modal run scripts/modal_train.py --merge-only"].stdout  # the last: each changes the manifest's hash
    commands = re.findall(r"^(?:Next:|   or|Keep) +(\S.*)$", said, re.M)
    assert [line.split()[0] for line in commands] == ["noesis", "mkdir", "noesis"], said[-3000:]
    shutil.copytree(cloud.clone / "data", tmp_path / "data", ignore=shutil.ignore_patterns("exports"))
    for line in commands:
        typed = cloud.type(line, cwd=tmp_path)
        assert typed.returncode == 0, f"{line}\n{typed.stdout}{typed.stderr}"
    there = cloud.volume / "merged" / "noesis-philosopher-v1"
    for here in (
        tmp_path / "model_output" / "noesis-philosopher-v1",
        tmp_path / "runs" / "noesis-philosopher-v1" / "merged" / "noesis-philosopher-v1",
    ):
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (here / file).read_bytes() == (there / file).read_bytes(), (here, file)


@pytest.mark.slow
def test_no_secret_is_kept(guide) -> None:
    cloud, _ = guide
    assert all(TOKEN.encode() not in p.read_bytes() for p in cloud.volume.rglob("*") if p.is_file())
    assert TOKEN not in cloud.plane.text


@pytest.mark.slow
def test_doctor_watch_and_cost_after_the_guide(guide) -> None:
    cloud, _ = guide
    said = cloud.noesis("doctor")
    assert "MISSING" not in said
    for name in (
        "Modal token",
        f"volume {VOLUME}",
        "secret huggingface-token",
        "dataset on the volume",
        f"licence of {LLAMA}",
    ):
        assert re.search(rf"^  ok +{name}", said, re.M), said
    assert TOKEN not in said
    assert "Where everything is" in cloud.noesis("watch", "--once")
    refused = json.loads(cloud.noesis("cost", "--json"))
    assert refused["billed_usd"] is None
    assert {"train", "judge", "merge"} <= {row["stage"] for row in refused["stages"]}
    assert refused["metered_usd"] > 0


@pytest.mark.slow
def test_what_was_pulled_is_not_pulled_again_but_what_broke_is(guide) -> None:
    cloud, _ = guide
    pulled = cloud.clone / "runs" / "noesis-philosopher-v1"
    weights = pulled / "merged" / "noesis-philosopher-v1" / "model.safetensors"
    for path in (f"checkpoints/epoch_2/{ADAPTER}", weights.relative_to(pulled), "manifest.json", "report.html"):
        assert (pulled / path).read_bytes() == (cloud.volume / path).read_bytes(), path
    again = json.loads(cloud.noesis("pull", str(pulled), "--json"))
    assert again["already_here"] > 15
    assert again["files"] < again["already_here"]  # only what no hash is known of is copied
    weights.write_bytes(b"broken")
    assert json.loads(cloud.noesis("pull", str(pulled), "--json"))["files"] == again["files"] + 1
    verified = cloud.type(f"noesis verify {pulled}")
    # where the model is not, what needs its tokenizer can't be checked
    assert (verified.returncode, "WRONG" in verified.stdout) == (0, False), verified.stdout


@pytest.mark.slow
def test_what_the_functions_ask_of_modal(guide) -> None:
    plane = guide[0].plane
    train, judge, merge = (plane.definition(name) for name in ("train", "judge", "merge"))
    assert (train.gpus[0], judge.gpus, merge.gpus) == ("L40S", ["A10"], [])
    for function in (train, judge, merge):
        d = function.definition
        assert d.retry_policy.retries == 1  # each is paid for, and a preemption costs none
        assert d.single_use_containers
        assert 0 < function.timeout <= 86_400
        assert "/data" in {mount.mount_path for mount in d.volume_mounts}
    assert {t.function.gpus[0] for t in plane.tasks_of("train")} == {"L40S"}
    assert merge.definition.resources.ephemeral_disk_mb == 0  # 512 GiB were billed as 25.6 GiB of memory
    install = " ".join(plane.mounts.commands(train.definition.image_id))
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().split()
        if line.startswith(("torch==", "transformers==", "trl==", "peft==", "bitsandbytes=="))
    ]
    assert len(pins) == 5
    assert all(pin in install for pin in pins)


@pytest.mark.slow
@pytest.mark.full
def test_a_run_taken_away_again_and_again_ends_with_the_same_files(guide, make_cloud) -> None:
    undisturbed, done = guide
    assert all(result.returncode == 0 for result in done.values())
    cloud = make_cloud()
    plane = cloud.plane
    plane.extra_files["/root/sitecustomize.py"] = patch("noesis.training.state.resumable", SLOW_SAVING)
    plane.extra_files["/root/sitecustomize.py"] += patch("noesis.cloud.volume.writer", "module.GRACE_S = 3.0")
    steps = "noesis-*/*/metrics.jsonl"  # in the container's temporary folder: 6 steps in all, 2 an epoch
    taken = [
        plane.inject(Fault("train", file=steps, lines=1)),  # in mid-epoch, with time to save
        plane.inject(Fault("train", "kill", log="SAVING")),  # while a state is being written
        plane.inject(Fault("train", "kill", before_commit=7)),  # while something is published
    ]
    others = [plane.inject(Fault("merge", "kill", before_commit=2)), plane.inject(Fault("conduct", after_commits=4))]
    first = plane.start(*RUN, "--epochs", "3", cwd=cloud.clone, env=cloud.env)
    wait(lambda: plane.tasks_of("train"), 300)
    second = cloud.run("--epochs", "3", code=1)  # two runs at once
    assert "another run is using this volume" in second
    said = first.communicate(timeout=600)[0]
    assert first.returncode == 0, said[-5000:]
    assert [fault.struck for fault in (*taken, *others)] == [1] * 5
    assert len(plane.tasks_of("train")) == 4
    for path in (
        *(f"checkpoints/epoch_{n}/{ADAPTER}" for n in range(3)),
        "merged/noesis-philosopher-v1/model.safetensors",
        "gguf/noesis-philosopher-v1-f16.gguf",
    ):
        assert (cloud.volume / path).read_bytes() == (undisturbed.volume / path).read_bytes(), path
    assert re.search(r"training was preempted [23] times and resumed each time", said)
    assert not list(cloud.volume.rglob("*.part"))
