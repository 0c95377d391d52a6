"""`noesis cloud pull` from a volume that lies: about sizes, about what lies there, and while it is being read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.manifest import edited_manifest, write_manifest
from noesis.cloud.pull import pull
from noesis.cloud.volume.remote import RemoteFile, safe_name
from noesis.core.errors import RunError
from noesis.core.files import explain_error

LISTED = {
    "data/train.jsonl": "export",
    "checkpoints/epoch_0/adapter_model.safetensors": "train",
    "metrics.jsonl": "train",
}


class Volume:
    """A volume that is a folder. `sizes` and `contents`: what it says instead of the truth, by file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sizes: dict[str, int] = {}
        self.contents: dict[str, Callable[[], Iterator[bytes]]] = {}

    def files(self, folder: str = "/") -> list[RemoteFile]:
        base = self.root / folder.strip("/")
        found = [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file())
        names = {p.relative_to(self.root).as_posix(): p.stat().st_size for p in found}
        return [RemoteFile(safe_name(name), self.sizes.get(name, size)) for name, size in names.items()]

    def chunks(self, path: str) -> Iterator[bytes]:
        name = path.strip("/")
        if name in self.contents:
            yield from self.contents[name]()
        else:
            yield (self.root / name).read_bytes()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A finished run, as far as pulling is concerned."""
    root, stages = tmp_path / "volume", {}
    for name, stage in LISTED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name * 100)
        record = stages.setdefault(stage, {"status": "done", "result": {}, "outputs": {}})
        text = (root / name).read_bytes()
        record["outputs"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    write_manifest(root, stages=stages)
    (root / "config.json").write_text("{}")
    return Volume(root)


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(1 << 20)


def test_an_honest_volume_is_pulled(volume: Volume, tmp_path: Path):
    pull(volume, tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("metrics.jsonl", id="a file with a hash that never ends"),
        pytest.param("config.json", id="a file without a hash that never ends"),
        pytest.param("checkpoints/epoch_0/adapter_model.safetensors", id="an adapter that never ends"),
    ],
)
def test_a_file_is_read_no_further_than_its_size(volume: Volume, tmp_path: Path, name: str):
    volume.contents[name] = endless
    with pytest.raises(RunError, match="is longer than"):
        pull(volume, tmp_path / "run")
    left = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert tmp_path / "run" / name not in left
    assert sum(p.stat().st_size for p in left) < 100_000
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        pytest.param("config.json", 1, "is longer than", id="a size that is too small"),
        pytest.param("config.json", 3, "is shorter than", id="a size that is too large"),
        pytest.param("config.json", 0, "is longer than", id="a size of nothing"),
        pytest.param("config.json", -1, "is longer than", id="a negative size"),
        pytest.param("data/train.jsonl", 7, "the manifest says", id="a size that is not the manifest's"),
    ],
)
def test_a_lying_size_is_an_error_and_leaves_no_file(volume: Volume, tmp_path: Path, name: str, size: int, why: str):
    volume.sizes[name] = size
    with pytest.raises(RunError, match=why):
        pull(volume, tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    assert not list((tmp_path / "run").rglob(".*.part"))


STRAYS = {
    "code beside the data": "data/loader.py",
    "an epoch that training did not list": "checkpoints/epoch_7/adapter_model.safetensors",
    "a pickle beside the adapter": "checkpoints/epoch_0/adapter_model.bin",
    "a merged model of a run that has merged nothing": "merged/m/model.safetensors",
    "code in a merged model": "merged/m/modeling_evil.py",
    "a GGUF file that nobody certified": "gguf/m-f16.gguf",
    "a report of a run that made none": "report.html",
}


@pytest.mark.parametrize("name", [pytest.param(name, id=what) for what, name in STRAYS.items()])
def test_a_file_that_should_have_a_hash_and_has_none_is_an_error(volume: Volume, tmp_path: Path, name: str):
    (volume.root / name).parent.mkdir(parents=True, exist_ok=True)
    (volume.root / name).write_text("evil")
    with pytest.raises(RunError, match="no hash in the manifest"):
        pull(volume, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_whose_entry_was_removed_is_an_error(volume: Volume, tmp_path: Path):
    with edited_manifest(volume.root) as manifest:
        del manifest["stages"]["train"]["outputs"]["checkpoints/epoch_0/adapter_model.safetensors"]
    with pytest.raises(RunError, match="no hash in the manifest"):
        pull(volume, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_a_training_under_way_need_no_hash_yet(volume: Volume, tmp_path: Path):
    with edited_manifest(volume.root) as manifest:
        manifest["stages"]["train"] = {"status": "interrupted"}
    pull(volume, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "epoch_0" / "adapter_model.safetensors").is_file()


def test_a_manifest_that_is_another_one_when_it_is_copied_is_an_error(volume: Volume, tmp_path: Path):
    text = (volume.root / "manifest.json").read_bytes()
    answers = iter([text, text.replace(b'"someone/else"', b'"nobody/else1"')])
    volume.contents["manifest.json"] = lambda: iter([next(answers)])
    with pytest.raises(RunError, match="has changed since"):
        pull(volume, tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()


PIECES = ["..", ".", "", "a", "data", "metrics.jsonl", "config.json", "manifest.json", "checkpoints", "epoch_0", "/", "~",
          "\\", "C:", "\n✓ ok", "\x1b[2J", "\u202e", "\0", "é", "n" * 300, ".lock", ".holder", "-rf", "*", "con", " "]  # fmt: skip
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("/".join) | st.text(max_size=20)
SIZES = st.sampled_from([0, 1, 2, -1, 10**18, 2**63, -(2**70)]) | st.integers()
CONTENTS = st.sampled_from([[b""], [b"{}"], [b"x"] * 5, []])


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, SIZES, CONTENTS), max_size=5))
def test_whatever_a_volume_lists_nothing_is_written_outside_and_no_bug_is_shown(
    volume: Volume, listed: list[tuple[str, int, list[bytes]]]
):
    class Lying(Volume):
        def files(self, folder: str = "/") -> list[RemoteFile]:
            found = [RemoteFile(safe_name(name), size) for name, size, _ in listed]
            return [*super().files(folder), *(file for file in found if file.path.startswith(folder.strip("/")))]

    lying = Lying(volume.root)
    lying.contents = {name.strip("/"): lambda parts=parts: iter(parts) for name, _, parts in listed}
    with TemporaryDirectory() as folder:
        target = Path(folder) / "here" / "run"
        try:
            pull(lying, target)
        except Exception as error:
            explained = explain_error(error)
            assert explained is not None, repr(error)  # a bug would have none
            assert str(explained)
        assert {path.name for path in Path(folder).iterdir()} <= {"here"}
        if (target.parent).is_dir():
            assert {path.name for path in target.parent.iterdir()} <= {"run"}
        names = [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()] if target.is_dir() else []
        assert all(name == safe_name(name) for name in names)
        assert not any(name.endswith(".part") for name in names)
