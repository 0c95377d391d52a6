"""Shared by the attacks: a suite of its own, thousands of small cases, too long for `make test-unit`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT, with_small_settings
from hostile.runs.finished_run import finish_run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_shape: Path) -> Path:
    """A folder with a project and its finished run, `run`; it takes seconds to make."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(ROOT / "data", folder / "project" / "data")
    with_small_settings(folder / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOESIS_CACHE", str(folder / "cache"))
        finish_run(folder / "project", tiny_shape, folder / "run")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, quiet_cache: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))
