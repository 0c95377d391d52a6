"""What a run on Modal can't have is refused where the command is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.checks import check_request
from noesis.cloud.request import CloudRequest, request_from_options
from noesis.core.config import ModalSection, TrainingFile, load_config
from noesis.core.errors import UsageError
from noesis.core.project import Project


def asked(**more: object) -> CloudRequest:
    return request_from_options(ModalSection(), **more)


def training(**sections: object) -> TrainingFile:
    return load_config(Project(ROOT)).training.model_copy(update=sections)


def test_what_is_no_kind_of_gguf_is_refused_before_anything_starts() -> None:
    """The names of other tolerances (`merge`, `adapter`) passed for kinds, and failed after the training was paid for."""
    check_request(Project(ROOT), training(), asked(gguf="f16,q4_k_m"))
    for kind in ("adapter", "merge", "q9"):
        with pytest.raises(UsageError, match=f"--gguf '{kind}' is not known; choose from f32, f16, q8_0, q4_k_m"):
            check_request(Project(ROOT), training(), asked(gguf=kind))


def test_trackers_are_refused_before_a_container_lacks_them() -> None:
    with pytest.raises(UsageError, match="report_to: wandb is not in the containers"):
        check_request(Project(ROOT), training(report_to=("wandb",)), asked())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data/more.jsonl", None),
        ("more.jsonl", "more.jsonl does not reach the containers"),
        ("data/../more.jsonl", "does not reach the containers"),
        ("data/training/exports/more.jsonl", "does not reach the containers"),
        ("data/linked.jsonl", "does not reach the containers"),
        ("data/absent.jsonl", "there is no file"),
        ("ABSOLUTE", "is a path of this machine"),
    ],
)
@pytest.mark.parametrize("key", ["dpo.pairs", "replay.file"])
def test_a_file_that_the_containers_would_not_have_is_refused(
    tmp_path: Path, key: str, name: str, said: str | None
) -> None:
    for file in ("more.jsonl", "data/more.jsonl", "data/training/exports/more.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}", encoding="utf-8")
    (tmp_path / "data" / "linked.jsonl").symlink_to(tmp_path / "more.jsonl")
    name = str(tmp_path / "data" / "more.jsonl") if name == "ABSOLUTE" else name
    base = training()
    method = "dpo" if key == "dpo.pairs" else "sft"
    changed = training(
        method=method,
        dpo=base.dpo.model_copy(update={"pairs": name}),
        replay=base.replay.model_copy(update={"file": name}),
    )
    if said is None:
        check_request(Project(tmp_path), changed, asked())
        return
    with pytest.raises(UsageError, match=said) as refused:
        check_request(Project(tmp_path), changed, asked())
    assert key in str(refused.value)
    check_request(Project(tmp_path), changed, asked(merge_only=True))  # a merge reads neither


def test_a_model_in_a_folder_of_this_machine_is_refused_and_one_on_the_volume_is_not(tmp_path: Path) -> None:
    for model in (str(tmp_path), "./model", "~/model", "../x"):
        with pytest.raises(UsageError, match="is a folder of this machine.*modal volume put VOLUME"):
            check_request(Project(ROOT), training(), asked(model=model))
    for model in ("/data/models/mine", "/weights/mine", "smollm2", "Qwen/Qwen2.5-7B-Instruct"):
        check_request(Project(ROOT), training(), asked(model=model))


def test_a_plan_needs_no_modal(tmp_path: Path) -> None:
    """Neither an account nor the package: nothing that could reach the service is imported."""
    (tmp_path / "modal.py").write_text("raise SystemExit('modal was imported')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "noesis", "cloud", "plan", "--epochs", "1", "--gpu", "H100", "--project", str(ROOT)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "H100" in done.stdout
    assert "cost" in done.stdout


def test_the_script_without_the_package_says_what_to_type(tmp_path: Path) -> None:
    """`modal` is often installed by itself: the script then ended in a traceback about `noesis`."""
    code = f"import runpy; runpy.run_path({json.dumps(str(ROOT / 'scripts' / 'modal_train.py'))})"
    done = subprocess.run([sys.executable, "-S", "-c", code], env={}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "make setup" in done.stderr
