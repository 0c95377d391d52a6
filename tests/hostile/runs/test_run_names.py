"""Attacks by the names in a manifest: each becomes part of a path, so each is held to a rule when the file is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.command import noesis
from helpers.manifest import edited_manifest
from helpers.project import ROOT
from noesis.cloud.pull import pull
from noesis.cloud.volume.remote import RemoteFile, UnreadableManifest, safe_name
from noesis.core.errors import ModelError, NoesisError, RunError
from noesis.core.files import write_json
from noesis.pipeline.results import RunResults
from noesis.pipeline.served.files import certified_gguf
from noesis.run.directory import load_run
from noesis.run.manifest_file import parse_manifest
from noesis.training.state.checkpoint import SEAL, unusable_reason

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A stranger's run."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "evil"))


NAMES: list[Any] = [
    pytest.param("/home/me/Documents", id="an absolute folder"),
    pytest.param("../../Documents", id="a folder above the run"),
    pytest.param("..", id="two dots"),
    pytest.param(".", id="one dot"),
    pytest.param("", id="nothing"),
    pytest.param("a/../../../b", id="out by way of a folder"),
    pytest.param("a/b", id="two levels"),
    pytest.param("a\\..\\..\\b", id="out in the way of Windows"),
    pytest.param("C:", id="a drive"),
    pytest.param(".ssh", id="a hidden folder"),
    pytest.param("a\n", id="a line break at the end"),
    pytest.param("a\0b", id="a NUL"),
    pytest.param("\x1b[2Ja", id="a control sequence"),
    pytest.param("*", id="a pattern of file names"),
    pytest.param("-rf", id="an option"),
    pytest.param("~", id="a home"),
    pytest.param(None, id="no text"),
    pytest.param(["a"], id="a list"),
    pytest.param(7, id="a number"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_the_model_is_no_path(evil: Path, tmp_path: Path, name: Any):
    documents = tmp_path / "Documents"
    documents.mkdir()
    (documents / "letter").write_text("precious")
    with edited_manifest(evil) as manifest:
        manifest["output_name"] = name
    with pytest.raises(RunError, match="which is no name of a folder"):
        load_run(evil)
    found = noesis("merge", evil, "--again")
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1 and "\x1b" not in found.stderr
    assert (documents / "letter").read_text() == "precious"


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_of_a_parent_is_no_path(evil: Path, name: Any):
    with edited_manifest(evil) as manifest:
        manifest["parent"] = {"run": "x", "adapter": name, "adapter_sha256": "0", "identity": manifest["identity"]}
    with pytest.raises(RunError, match="which is no name of a folder"):
        load_run(evil)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/etc/passwd", id="an absolute file"),
        pytest.param("../outside", id="a file above the run"),
        pytest.param("data/../../outside", id="out by way of a folder"),
        pytest.param("data//x", id="an empty part"),
        pytest.param("./data/x", id="a dot"),
        pytest.param("", id="nothing"),
        pytest.param("..\\outside", id="out in the way of Windows"),
        pytest.param("C:/outside", id="a drive"),
        pytest.param("data/a\0b", id="a NUL"),
    ],
)
def test_an_output_is_a_file_of_the_run(evil: Path, tmp_path: Path, name: str):
    (tmp_path / "outside").write_text("precious")
    with edited_manifest(evil) as manifest:
        manifest["stages"]["merge"]["outputs"][name] = {"bytes": 8, "sha256": "0" * 64}
    for command in ("status", "verify"):
        found = noesis(command, evil)
        assert found.returncode == 1
        assert "which is not in the run" in found.stderr


@pytest.mark.parametrize(
    "result", [pytest.param({"adapter": name}, id=f"{name!r} as the chosen epoch") for name in ("../../x", "/x", 7, None)]
    + [pytest.param({}, id="no chosen epoch"), pytest.param([1], id="a list as a result"), pytest.param("x", id="a text")],
)  # fmt: skip
def test_the_chosen_adapter_is_one_that_was_trained(evil: Path, result: Any):
    adapter = evil / "checkpoints" / "epoch_0"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with edited_manifest(evil) as manifest:
        manifest["stages"]["choose"]["result"] = result
    try:
        found = load_run(evil).adapter()
    except RunError:
        return  # not a manifest
    assert found == adapter


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=f"a folder checkpoints/{name!r}")
        for name in ("epoch_1x", "epoch_-1", "epoch_1e9", "epoch_٣", "epoch_" + "9" * 50, "epoch_1\n")
    ],
)
def test_a_folder_that_is_no_epoch_is_not_taken_for_one(evil: Path, name: str):
    for folder in ("epoch_0", name):
        (evil / "checkpoints" / folder).mkdir(parents=True)
        (evil / "checkpoints" / folder / "adapter_model.safetensors").write_bytes(b"")
    assert [path.name for path in load_run(evil).epochs()] == ["epoch_0"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("/../../../outside", id="out of the run"),
        pytest.param("../x", id="a folder above"),
        pytest.param("", id="nothing"),
        pytest.param("f16\n", id="a line break"),
        pytest.param("*", id="a pattern of file names"),
    ],
)
def test_a_served_file_is_one_of_the_runs(evil: Path, tmp_path: Path, kind: str):
    """`gguf/<name>-<kind>.gguf` with this kind would be a file elsewhere."""
    (evil / "gguf" / "noesis-philosopher-v1-").mkdir()
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    with edited_manifest(evil) as manifest:
        files = manifest["stages"]["gguf"]["result"]["files"]
        manifest["stages"]["gguf"]["result"]["files"] = {kind: files["f16"]}
        manifest["stages"]["gguf"]["outputs"] = {}
    run = load_run(evil)
    with pytest.raises(ModelError, match="no kind of GGUF file"):
        certified_gguf(run)
    with pytest.raises(ModelError, match="no kind of GGUF file"):
        _ = RunResults(run).certificate


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".."])
def test_a_sealed_state_names_only_files_beside_its_seal(tmp_path: Path, name: str):
    from noesis.core.files import sha256_json

    state = tmp_path / "checkpoint-1"
    body = {"format": 1, "step": 1, "files": {name: {"bytes": 0, "sha256": "0"}}}
    write_json(state / SEAL, body | {"sha256": sha256_json(body)})
    assert unusable_reason(state) == f"{name} is missing"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="a hundred thousand open brackets"),
        pytest.param("[]", id="a list"),
        pytest.param('"x"', id="a text"),
        pytest.param("null", id="null"),
        pytest.param('{"stages": []}', id="stages that are a list"),
        pytest.param('{"output_name": "m", "identity": {}, "stages": {}}', id="an empty identity"),
        pytest.param('{"format": 99}', id="a format of the future"),
        pytest.param('{"format": "x"}', id="a format that is no number"),
        pytest.param('{"format": 1e999}', id="a format without end"),
        pytest.param("{}\0", id="a NUL at the end"),
    ],
)
def test_what_is_no_manifest_is_one_message(evil: Path, text: str):
    (evil / "manifest.json").write_text(text)
    found = noesis("status", evil)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


# --- the same by way of a volume


class Volume:
    """A volume with one manifest."""

    def __init__(self, manifest: dict[str, Any], **files: str) -> None:
        self.found = {"manifest.json": json.dumps(manifest), **files}

    def files(self, folder: str = "/") -> list[RemoteFile]:
        top = folder.strip("/")
        return [RemoteFile(safe_name(n), len(t)) for n, t in self.found.items() if n == top or n.startswith(f"{top}/")]

    def chunks(self, path: str) -> Iterator[bytes]:
        yield self.found[path.strip("/")].encode()


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_the_model_on_a_volume_is_no_path(tmp_path: Path, name: Any):
    manifest = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
    with pytest.raises(UnreadableManifest):
        pull(Volume(manifest | {"output_name": name}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_every_name_of_a_real_manifest_is_accepted():
    for file in (GOLDEN / "manifest.json", GOLDEN.parent / "golden_trial_manifest.json"):
        assert parse_manifest(json.loads(file.read_text(encoding="utf-8"))).stages
    with pytest.raises(NoesisError):
        parse_manifest({"output_name": "..", "identity": {}, "stages": {}})
