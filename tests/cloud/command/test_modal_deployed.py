"""`noesis cloud train|watch|logs|stop`: a run that needs no terminal, through the real SDK against the control plane."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from helpers.modal_guide import steps_taken, wait
from helpers.modal_local.patches import SLOW_SAVING, patch

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.timing]
SHORT = ("--epochs", "2", "--max-examples", "8", "--judge", "none")


def test_a_run_is_started_without_a_terminal_ends_early_is_stopped_and_goes_on(make_cloud) -> None:
    cloud = make_cloud()
    plane, dataset = cloud.plane, cloud.volume / "dataset"
    plane.extra_files["/root/sitecustomize.py"] = patch("noesis.cloud.volume.lease", "module.LEAVING_S = 3.0")
    kept = shutil.move(dataset, cloud.volume.parent / "kept-dataset")

    def idle() -> bool:
        return not any(task.alive for task in plane.tasks.values())

    # what fails in the first minute, when nobody looks, is found later
    started = json.loads(cloud.noesis("train", *SHORT, "--json"))
    assert started["call"].startswith("fc-")
    wait(lambda: plane.tasks_of("conduct") and idle(), 120)
    assert "the last run ended: Dataset not found" in cloud.noesis("watch", "--once")
    assert not plane.tasks_of("train")
    assert "nothing is running" in cloud.noesis("stop")

    # stopped while it trains: no container is left
    shutil.move(kept, dataset)
    plane.extra_files["/root/sitecustomize.py"] += patch("noesis.training.state.resumable", SLOW_SAVING)
    said = cloud.noesis("train", *SHORT)
    assert "needs this machine no more" in said
    wait(lambda: any(steps_taken(task) for task in plane.tasks_of("train")), 240)
    assert "another run is using this volume" in cloud.noesis("train", *SHORT, code=1)
    assert "cancelled" in cloud.noesis("stop")
    wait(idle, 120)
    assert not (cloud.volume / "report.html").exists()

    # and the same command goes on
    wait(lambda: json.loads((cloud.volume / ".cloud" / "lease.json").read_text())["until"] < time.time(), 60)
    cloud.noesis("train", *SHORT)
    wait(lambda: (cloud.volume / "report.html").is_file() and idle(), 300)
    assert "done; done:" in cloud.noesis("watch", "--once")
    logs = cloud.noesis("logs")  # by name: of a deployed app
    assert "report.html" in logs
