"""The judge that the run serves for itself, through the real `modal` command: its own app, its image, its probe."""

from __future__ import annotations

import json
import subprocess
import sys

import modal
import pytest

from helpers.modal_guide import Cloud
from noesis.cloud.container import vllm_judge
from noesis.cloud.entrypoint import with_judge_deployed
from noesis.cloud.request import CloudRequest

JUDGE = "Qwen/Qwen2.5-7B-Instruct"
SERVED = CloudRequest(judges=(f"vllm:{JUDGE}",))


def test_an_image_that_can_not_be_built_is_the_judges_problem_and_no_error() -> None:
    def broken() -> None:
        raise modal.exception.RemoteError("Image build for im-1 failed")

    problem = with_judge_deployed(SERVED, broken).judge_problem
    assert problem is not None
    assert (
        f"the judge vllm:{JUDGE} can't judge: the image with vLLM could not be built (Image build for im-1" in problem
    )
    assert "--test-only" in problem


def test_what_needs_no_vllm_builds_none() -> None:
    def never() -> None:
        raise AssertionError

    remote = CloudRequest(judges=("openai:https://x/v1:m",))
    for request in (remote, CloudRequest(), CloudRequest(what="merge", judges=SERVED.judges)):
        assert with_judge_deployed(request, never) == request


def test_without_a_token_nothing_goes_on() -> None:
    def refused() -> None:
        raise modal.exception.AuthError("Token missing")

    with pytest.raises(modal.exception.AuthError):
        with_judge_deployed(SERVED, refused)


def test_the_server_finds_the_programs_of_its_own_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM calls `ninja` by name; on the image's own PATH its Python would run the container."""
    monkeypatch.setenv("PATH", "/usr/bin")
    found = vllm_judge.server_environment("/opt/vllm/bin/vllm", "secret")
    assert (found["PATH"], found["VLLM_API_KEY"]) == ("/opt/vllm/bin:/usr/bin", "secret")
    assert found["VLLM_USE_FLASHINFER_SAMPLER"] == "0"  # compiled at the first use, by what the image has not


@pytest.fixture(scope="module")
def deployed(make_cloud) -> Cloud:
    """The judge's app alone, deployed from the clone."""
    cloud = make_cloud()
    code = "from noesis.cloud.app import judging; judging.deploy()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cloud.clone, env=cloud.plane.env | cloud.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return cloud


@pytest.mark.slow
def test_what_vllms_image_gets(deployed) -> None:
    plane = deployed.plane
    for name in ("judge_served", "probe_judge"):
        function = plane.definition(name)
        lines = "\n".join(plane.mounts.commands(function.definition.image_id))
        assert "uv pip install -p /opt/vllm -r /opt/constraints-vllm.txt" in lines
        for cache in ("HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"):
            (line,) = [line for line in lines.splitlines() if cache in line]
            assert "/weights/" in line
        assert "PATH=" not in lines
        assert function.gpus == ["A10"]
    assert {"/data", "/weights"} <= {mount.mount_path for mount in function.definition.volume_mounts}


@pytest.mark.slow
@pytest.mark.full
def test_training_goes_on_without_the_image_and_the_verdict_says_why(make_cloud) -> None:
    cloud = make_cloud()
    cloud.plane.mounts.unbuildable = "constraints-vllm.txt"
    said = cloud.run("--epochs", "1", "--max-examples", "8", "--judge", f"vllm:{JUDGE}")
    assert f"UNDECIDED: the judge vllm:{JUDGE} can't judge: the image with vLLM could not be built" in said
    assert (cloud.volume / "merged" / "noesis-philosopher-v1" / "model.safetensors").is_file()
    assert not cloud.plane.tasks_of("probe_judge")
    assert len(cloud.plane.tasks_of("judge")) == 1


@pytest.mark.slow
@pytest.mark.full
def test_the_judge_is_probed_in_its_own_app_and_what_it_says_at_its_end_is_the_verdict(make_cloud, tiny_model) -> None:
    cloud = make_cloud()
    cloud.plane.hub.add(JUDGE, tiny_model)
    cloud.plane.extra_files["/root/sitecustomize.py"] = (
        "import os, sys\n"
        "broken = 'raise(RuntimeError(chr(110)+chr(111)))'\n"
        "os.environ['NOESIS_VLLM'] = sys.executable + ' -c ' + broken\n"
    )
    said = cloud.run("--epochs", "1", "--max-examples", "8", "--judge", f"vllm:{JUDGE}")
    assert f"UNDECIDED: the judge vllm:{JUDGE} can't judge: its server ended with code 1: RuntimeError: no" in said
    assert len(cloud.plane.tasks_of("probe_judge")) == 1
    assert not cloud.plane.tasks_of("judge_served")
    summary = json.loads((cloud.volume / "tribunal" / "summary.json").read_text())
    assert summary["court"]["reason"].endswith("--test-only")
