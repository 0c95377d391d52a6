"""examples/quickstart.ipynb, run by Jupyter's own client: with a tiny model, and (full) as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT, small_project_in
from helpers.tiny_runs import toy_tribunal

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
CELL_S = 1200.0


def execute(folder: Path, settings: dict[str, object] | None) -> dict[str, str]:
    """Run the notebook in `folder`; what each cell printed or showed, by the cell's id."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = {cell.id: cell for cell in notebook.cells}
    if settings is not None:
        cells["parameters"].source += f"\nsettings |= {settings!r}"
    nbclient.NotebookClient(notebook, timeout=CELL_S, resources={"metadata": {"path": str(folder)}}).execute()
    return {name: "".join(map(shown, cell.get("outputs", ()))) for name, cell in cells.items()}


def shown(output: Any) -> str:
    return output.get("text", "") or output.get("data", {}).get("text/html", "")


@pytest.mark.slow
def test_the_notebook_with_a_tiny_model(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    toy_tribunal(small_project_in(tmp_path / "my-philosopher").root)
    found = execute(tmp_path, {"model": str(tiny_model), "kept_items": 9})
    assert "no errors" in found["validate"] and "steps" in found["plan"]
    assert found["release"].strip().splitlines()[-1].startswith("True")
    assert "srcdoc" in found["report"] and "UNDECIDED" in found["judge"]
    assert (
        "loading" in found["chat"] and (tmp_path / "my-philosopher" / "runs" / "quickstart" / "report.html").is_file()
    )


@pytest.mark.full
def test_the_notebook_as_it_is(tmp_path: Path):
    found = execute(tmp_path, None)
    answer = found["chat"].partition("…\n")[2]
    assert len(answer.split()) > 5, found["chat"]
    shutil.rmtree(tmp_path / "my-philosopher")
