"""The control plane itself, on a toy app: what must be as in the cloud is, and the mistakes that fail there fail here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.modal_local import ControlPlane, Fault
from helpers.modal_local.toys.run import TOY, toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        plane.volume("toy-data")
        plane.secret("toy-secret", TOY_KEY="abc")
        yield plane


@pytest.mark.parametrize("kind", ["namespace", "plain"])
def test_a_container_sees_the_uploaded_files_and_nothing_of_the_checkout(kind: str) -> None:
    try:
        plane = ControlPlane(isolation=kind)
    except RuntimeError as error:
        pytest.skip(f"{error}: the tests here ran in plain processes")
    with plane:
        plane.volume("toy-data").joinpath("a.txt").write_text("a")
        plane.secret("toy-secret", TOY_KEY="abc")
        seen = eval(toy(plane, "look"))
    assert seen.pop("packages") == {"yaml": True, "modal": True, "torch": False}  # the image pins PyYAML alone
    assert seen == {"key": "abc", "env": "a b", "noesis": "", "shipped": True, "files": ["a.txt"], "token": None}


def test_what_is_not_committed_is_not_seen_by_the_next_function(plane: ControlPlane) -> None:
    found = toy(plane, "forgotten")
    assert "'kept'" in found
    assert "'lost'" not in found


@pytest.mark.parametrize("reload", [False, True])
def test_a_commit_elsewhere_is_seen_after_reload_only(plane: ControlPlane, reload: bool) -> None:
    (plane.volume("toy-data") / "late").unlink(missing_ok=True)
    assert toy(plane, "reload", *(["--fast"] if reload else [])) == str(reload)


def test_reload_fails_while_a_file_is_open(plane: ControlPlane) -> None:
    assert toy(plane, "open") == "there are open files preventing the operation: path open.txt is open"


def test_calls_of_each_kind(plane: ControlPlane) -> None:
    assert toy(plane, "map", "--n", "5") == "[0, 1, 4, 9, 16] [49]"
    assert toy(plane, "spawn") == "[0, 1, 4]"
    assert toy(plane, "class") == "abc hello world | abc hi you"


@pytest.mark.timing
def test_retries_by_client_and_by_service(plane: ControlPlane) -> None:
    assert toy(plane, "retries") == "3 3 [3]"
    assert "try 4" in toy(plane, "exhausted", code=1)


@pytest.mark.parametrize(("what", "said"), [("toy", "ToyError mine"), ("memory", "MemoryError CUDA out of memory")])
def test_exceptions_keep_their_class(plane: ControlPlane, what: str, said: str) -> None:
    assert toy(plane, what) == said


@pytest.mark.timing
def test_a_container_that_dies_and_one_that_takes_too_long(plane: ControlPlane) -> None:
    assert "exited with code 7" in toy(plane, "exit", code=1)
    assert re.fullmatch(r"Task's current input in-\w+ hit its timeout of 2s", toy(plane, "slow"))


def test_the_entrypoints_exit_code_is_modals(plane: ControlPlane) -> None:
    toy(plane, "nothing of that name", code=5)


def test_definitions_are_recorded(plane: ControlPlane) -> None:
    assert toy(plane, "options") == "abc"
    assert plane.tasks_of("look")[-1].function.gpus == ["H100:2"]
    assert plane.tasks_of("look")[-1].function.timeout == 900
    flaky = plane.definition("flaky").definition
    assert (flaky.retry_policy.retries, flaky.single_use_containers) == (3, True)
    assert plane.functions.functions[plane.tasks_of("look")[-1].function.base_id].gpus == ["L40S", "A100-80GB"]
    assert any("PyYAML==6.0.3" in line for line in plane.mounts.commands(flaky.image_id))


@pytest.mark.timing
@pytest.mark.parametrize(
    ("fault", "starts"),
    [
        (Fault("steps", after_commits=3), "0 3 "),
        (Fault("steps", log="step 4", times=2), "0 3 "),
        (Fault("steps", "kill", before_commit=3), "0 2 "),
        (Fault("steps", "kill", file="step", after_seconds=99), "0 "),
    ],
)
def test_an_input_taken_away_runs_again_from_what_was_committed(fault: Fault, starts: str) -> None:
    with ControlPlane() as plane:
        plane.volume("toy-data")
        plane.secret("toy-secret", TOY_KEY="abc")
        plane.inject(fault)
        toy(plane, "steps", "--n", "6")
        assert fault.struck == fault.times
        assert (plane.volume("toy-data") / "step").read_text() == "6"
        assert (plane.volume("toy-data") / "starts").read_text().startswith(starts)
        assert ("interrupted" in plane.text) == (fault.what == "preempt")
        assert len(plane.tasks_of("steps")) == fault.times + 1


@pytest.mark.timing
def test_ctrl_c_ends_the_containers_and_detach_lets_them_go_on(plane: ControlPlane) -> None:
    file = plane.volume("toy-data") / "step"
    for detach in (False, True):
        file.unlink(missing_ok=True)
        run = plane.start("run", *(["--detach"] if detach else []), TOY, "--what", "steps", "--n", "15")
        wait(lambda: file.exists() and int(file.read_text()) >= 2)
        os.kill(run.pid, signal.SIGINT)
        run.wait(120)
        task = plane.tasks_of("steps")[-1]
        wait(lambda task=task: not task.alive)
        assert (int(file.read_text()) == 15) == detach
        wait(lambda: all(app.state == 5 for app in plane.apps.apps.values()))


def test_logs_stats_and_list_of_a_run(plane: ControlPlane) -> None:
    toy(plane, "steps", "--n", "40")  # nothing left to do or a few steps
    assert plane.modal("app", "logs", "toy").returncode == 1  # the service finds deployed apps by name
    plane.names_of_runs = True
    logs, stats, listed = (
        plane.modal("app", *a, check=True).stdout for a in (("logs", "toy"), ("stats", "toy"), ("list",))
    )
    plane.names_of_runs = False
    assert "step 40" in logs
    assert re.search(r"steps +1 +0.0% +1 +0", stats)
    assert "stopped" in listed


def test_volume_commands(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "sub" / "big.bin").write_bytes(os.urandom(9_000_000))
    (tmp_path / "up" / "small.txt").write_text("ç\n")
    for version in ("1", "2"):
        name = f"files-v{version}"
        assert plane.modal("volume", "create", name, "--version", version).returncode == 0
        assert "already exists" in plane.modal("volume", "create", name).stderr
        plane.modal("volume", "put", name, tmp_path / "up", "/in", check=True)
        again = plane.modal("volume", "put", name, tmp_path / "up", "/in")
        assert (again.returncode, "already exists" in again.stderr) == (2, True)
        plane.modal("volume", "put", "--force", name, tmp_path / "up", "/in", check=True)
        assert plane.modal("volume", "ls", name, "/in").stdout.split() == ["in/small.txt", "in/sub"]
        target = tmp_path / f"down{version}"
        target.mkdir()
        plane.modal("volume", "get", name, "/in", target, check=True)
        assert (target / "in" / "sub" / "big.bin").read_bytes() == (tmp_path / "up" / "sub" / "big.bin").read_bytes()
        plane.modal("volume", "rm", "-r", name, "/in/sub", check=True)
        assert plane.modal("volume", "ls", name, "/in").stdout.split() == ["in/small.txt"]
        assert plane.modal("volume", "ls", name, "/nowhere").returncode == 1
    assert "files-v1" in plane.modal("volume", "list").stdout


def test_secrets_and_what_is_missing(plane: ControlPlane) -> None:
    assert plane.modal("secret", "create", "s", "A=1").returncode == 0
    assert "already exists" in plane.modal("secret", "create", "s", "A=2").stderr
    assert plane.modal("secret", "create", "s", "A=2", "--force").returncode == 0
    assert "toy-secret" in plane.modal("secret", "list").stdout
    with ControlPlane() as bare:
        assert "Secret 'toy-secret' not found in environment 'main'" in toy(bare, "look", code=1)
        bare.secret("toy-secret", OTHER="x")
        bare.volume("toy-data")
        assert "missing key(s): TOY_KEY" in toy(bare, "look", code=1)
        del bare.volumes.by_name["toy-data"]
        bare.secret("toy-secret", TOY_KEY="x")
        assert "Volume 'toy-data' not found in environment 'main'" in toy(bare, "look", code=1)


def test_tokens(plane: ControlPlane) -> None:
    for env, said in (
        ({"MODAL_TOKEN_ID": ""}, "Token missing"),
        ({"MODAL_TOKEN_ID": "x"}, "malformed"),
        ({"MODAL_TOKEN_SECRET": "x"}, "validation failed"),
    ):
        done = plane.modal("volume", "list", env=env)
        assert done.returncode == 1
        assert said in done.stderr


def test_billing_answers_or_refuses(plane: ControlPlane) -> None:
    assert "Team and Enterprise" in plane.modal("billing", "report", "--for", "today").stderr
    plane.billing = [{"object_id": "ap-1", "description": "toy", "cost": "1.25", "cost_by_resource": {"L40S": "1.25"}}]
    assert '"Cost": "1.25"' in plane.modal("billing", "report", "--for", "today", "--json").stdout.replace(
        "cost", "Cost"
    )


def test_without_a_plane_nothing_is_reached() -> None:
    assert os.environ["MODAL_SERVER_URL"] == "http://127.0.0.1:9"
    code = "import modal.config as c; print(c.config['server_url'], c.config['token_id'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "http://127.0.0.1:9",
        "None",
    ]


def wait(until, seconds: float = 120.0) -> None:
    """Until it is so, or fail."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
