"""Attacks on the user's own files: a folder typed as a run, an output named like an input, a model's linked licence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from noesis.cloud.pull import pull
from noesis.cloud.volume.remote import RemoteFile, safe_name
from noesis.core.config import load_config
from noesis.core.errors import RunError, UnsafePathError, UsageError
from noesis.core.files import require_output
from noesis.core.project import Project
from noesis.core.rooted import file_of_model
from noesis.release.merge_weights import _write_other_files
from noesis.run.contents import strays
from noesis.run.directory import load_run, open_run
from noesis.run.folder import DROPPINGS, require_run_folder
from noesis.run.lock import held, locked
from noesis.run.manifest import Identity

GOLDEN = ROOT / "tests" / "helpers" / "golden_run"
CONFIG = load_config(Project(ROOT))
IDENTITY = Identity("a", "b", "c", "m", "r")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# --- a folder that is no run


FOLDERS = [
    pytest.param({"data/training/philosophical/a.jsonl": "{}"}, id="a project"),
    pytest.param({"data/mine.csv": "1"}, id="a folder with data in it"),
    pytest.param({"config.json": '{"model_type": "llama"}', "model.safetensors": "x"}, id="a model"),
    pytest.param({"config.json": '{"model_type": "llama"}'}, id="a model's configuration alone"),
    pytest.param({"config.json": "{"}, id="a damaged configuration alone"),
    pytest.param({"manifest.json": '{"name": "my web page", "icons": []}'}, id="a web page with a manifest of its own"),
    pytest.param({"manifest.json": "{"}, id="a damaged manifest"),
    pytest.param({".git/HEAD": "ref"}, id="a repository"),
    pytest.param({"report.html": "<p>"}, id="a report"),
    pytest.param({"gguf/model.gguf": "GGUF"}, id="a folder of models"),
    pytest.param({".lock": "", "notes.txt": "x"}, id="a lock and a note"),
    pytest.param({".moving": "../.archive/x-0123abcd", "notes.txt": "x"}, id="a note of a move and something else"),
    pytest.param({"summary.txt": "x", "tribunal/prompts/a.jsonl": "{}"}, id="a Tribunal"),
]


@pytest.fixture
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name, text in request.param.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("mine", FOLDERS, indirect=True)
def test_no_run_starts_in_a_folder_of_the_user(mine: Path, tmp_path: Path):
    before = contents(tmp_path)
    with pytest.raises((UsageError, RunError), match=r"is no run and not empty|is not a manifest|is damaged"):
        open_run(mine, IDENTITY, CONFIG, fresh=True)
    with (
        pytest.raises((UsageError, RunError), match=r"is no run and not empty|is not a manifest|is damaged"),
        locked(mine),
    ):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mine", FOLDERS, indirect=True)
def test_no_run_is_pulled_into_a_folder_of_the_user(mine: Path, tmp_path: Path):
    before = contents(tmp_path)
    with pytest.raises(RunError, match=r"which is not of this run|is not a manifest|is damaged"):
        pull(Volume(GOLDEN), mine)
    assert contents(tmp_path) == before


def test_train_with_run_dot_leaves_the_project_as_it_is(tmp_path: Path):
    shutil.copytree(ROOT / "data", tmp_path / "data")
    before = contents(tmp_path)
    found = noesis("train", "--run", ".", "--fresh", cwd=tmp_path)
    assert found.returncode == 2
    assert "is no run and not empty (it holds data)" in found.stderr
    assert contents(tmp_path) == before


def test_a_file_in_place_of_a_run(tmp_path: Path):
    (tmp_path / "letter").write_text("precious")
    with pytest.raises(UsageError, match="is a file"), locked(tmp_path / "letter"):
        pass
    assert (tmp_path / "letter").read_text() == "precious"


@pytest.mark.parametrize("place", [".", "again", "data"])
def test_a_replay_into_the_run_itself_is_refused(tmp_path: Path, place: str):
    run = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    before = contents(run)
    found = noesis("replay", run, "--out", run / place)
    assert found.returncode in (1, 2)
    assert contents(run) == before


def test_what_a_killed_start_leaves_is_taken_up(tmp_path: Path):
    """The other side: new and empty folders, and those in which Noesis itself was killed, are no strangers' folders."""
    for prepare in (
        lambda folder: None,
        lambda folder: folder.mkdir(),
        lambda folder: shutil.copytree(
            GOLDEN, folder, ignore=lambda _, names: [n for n in names if n != "config.json"]
        ),
        lambda folder: (folder / "x").parent.mkdir() or (folder / ".config.json.12.part").write_text("{"),
    ):
        folder = tmp_path / "run"
        prepare(folder)
        with locked(folder):
            open_run(folder, IDENTITY, CONFIG)
        assert load_run(folder).identity == IDENTITY
        shutil.rmtree(folder)


# --- pulling


class Volume:
    """A volume that is a folder with a run; `break_at`: the connection breaks after so many files."""

    def __init__(self, root: Path, break_at: int = 1000) -> None:
        self.root, self.left = root, break_at

    def files(self, folder: str = "/") -> list[RemoteFile]:
        base = self.root / folder.strip("/")
        found = [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file())
        return [RemoteFile(safe_name(p.relative_to(self.root).as_posix()), p.stat().st_size) for p in found]

    def chunks(self, path: str):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("gone")
        yield (self.root / path.strip("/")).read_bytes()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A run whose manifest lists no file that is not there."""
    root = Path(shutil.copytree(GOLDEN, tmp_path / "volume"))
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    for stage in manifest["stages"].values():
        stage["outputs"] = {name: file for name, file in stage.get("outputs", {}).items() if (root / name).is_file()}
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


def test_a_pull_that_was_interrupted_goes_on_and_takes_no_file_of_the_user_for_its_own(volume: Path, tmp_path: Path):
    with pytest.raises(ConnectionError):
        pull(Volume(volume, break_at=6), tmp_path / "run")
    (tmp_path / "run" / "data" / "mine.txt").write_text("precious")
    with pytest.raises(RunError, match=r"data/mine\.txt, which is not of this run"):
        pull(Volume(volume), tmp_path / "run")
    (tmp_path / "run" / "data" / "mine.txt").unlink()
    pull(Volume(volume), tmp_path / "run")
    assert contents(tmp_path / "run") == {n: f for n, f in contents(volume).items() if n != "demo.json"}


@pytest.mark.parametrize("name", ["tribunal/replies.sqlite", "tribunal/replies.sqlite-wal", "demo.json"])
def test_a_pull_leaves_out_what_no_hash_vouches_for_and_nothing_here_needs(volume: Path, tmp_path: Path, name: str):
    (volume / name).write_text("evil")
    pull(Volume(volume), tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()


def test_a_pull_keeps_work_that_the_volume_does_not_know(volume: Path, tmp_path: Path):
    pull(Volume(volume), tmp_path / "run")
    load_run(tmp_path / "run").perform("noted", dict, list)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="work was done that the volume does not know"):
        pull(Volume(volume), tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_pull_waits_for_nobody_who_works_on_the_run(volume: Path, tmp_path: Path):
    pull(Volume(volume), tmp_path / "run")
    (tmp_path / "run" / ".x.1.part").write_text("being written")
    with held(tmp_path / "run"), pytest.raises(RunError, match="is in use by"):
        pull(Volume(volume), tmp_path / "run")
    assert (tmp_path / "run" / ".x.1.part").read_text() == "being written"


def test_a_path_through_a_link_and_back_is_refused(volume: Path, tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copytree(volume, tmp_path / "a" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("precious")
    (tmp_path / "link").symlink_to("a/b")
    with pytest.raises(UnsafePathError, match="through a symbolic link and back"):
        load_run(tmp_path / "link" / ".." / "run")
    assert (tmp_path / "run" / "report.html").read_text() == "precious"


@pytest.mark.parametrize("name", DROPPINGS)
def test_what_other_programs_leave_anywhere_is_no_file_of_the_user(volume: Path, tmp_path: Path, name: str):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).touch()
    require_run_folder(tmp_path / "new")
    assert strays([name, f"data/{name}", "notes.md"], load_run(volume).manifest) == ["notes.md"]


@pytest.mark.parametrize("name", ["data/train.jsonl", "gguf/parity.json", "config.json"])
def test_a_file_of_the_user_with_the_name_of_one_of_the_runs_is_not_replaced(volume: Path, tmp_path: Path, name: str):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(RunError, match="which is not of this run"):
        pull(Volume(volume), tmp_path / "run")
    assert file.read_text() == "precious"


# --- outputs named like inputs


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A project, a model folder and some files beside them."""
    folder = tmp_path / "work"
    shutil.copytree(ROOT / "data", folder / "data")
    model = folder / "model"
    model.mkdir()
    for name, text in (("config.json", "{}"), ("model.safetensors", "weights"), ("old.gguf", "GGUF old")):
        (model / name).write_text(text)
    (folder / "thesis.txt").write_text("precious")
    (folder / "rows.jsonl").write_text('{"id": 1}\n')
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("precious")
    if os.name == "posix":
        os.link(model / "model.safetensors", folder / "second_name.gguf")
        (folder / "linked.gguf").symlink_to(model / "model.safetensors")
        (folder / "into").symlink_to(model)
    return folder


COMMANDS = [
    ("gguf model --outfile model/model.safetensors", "over the weights"),
    ("gguf model --outfile model/new.gguf", "into the model's folder"),
    ("gguf model --outfile model/old.gguf", "over a file of the model's folder"),
    ("gguf model --outfile model/../model/new.gguf", "into the model's folder by a detour"),
    ("gguf model --outfile into/new.gguf", "into the model's folder through a link"),
    ("gguf model --outfile linked.gguf", "over the weights through a link"),
    ("gguf model --outfile second_name.gguf", "over the weights by their second name"),
    ("gguf model --outfile thesis.txt", "over a file that is no GGUF file"),
    ("gguf model --outfile notes", "over a folder"),
    ("gguf . --outfile model/new.gguf", "into the model's folder, one level down"),
    ("data validate --json data/constitution.yaml", "a report over the constitution"),
    ("data validate --json data/training/philosophical/maieutica.jsonl", "a report over the examples"),
    ("data validate --json data/training/philosophical/new.json", "a report among the examples"),
    ("data validate --json data/training/training_config.yaml", "a report over the settings"),
    ("data validate rows.jsonl --json rows.jsonl", "a report over the rows that it is about"),
    ("data validate --json thesis.txt", "a report over a file of another kind"),
    ("data validate --json rows.jsonl", "a report over other rows"),
    ("data inspect --html data/constitution.yaml", "a page over the constitution"),
    ("data inspect --html data/training/philosophical/maieutica.jsonl", "a page over the examples"),
    ("data inspect --html thesis.txt", "a page over a file of another kind"),
    ("data export --out data/training/philosophical", "an export among the examples"),
    ("data export --source rows.jsonl --out data/training/philosophical_en", "an export among other examples"),
    ("data export --source notes --out notes", "an export into its source"),
    ("constitution prompts --out data/training/philosophical", "prompts among the examples"),
    ("constitution prompts --out notes", "prompts in a folder of the user"),
    ("constitution prompts --out data", "prompts in the project's data"),
    ("constitution prefer --critic torch:smollm2 --pairs rows.jsonl --out notes", "pairs in a folder of the user"),
    ("init notes", "a project in a folder of the user"),
    ("init .", "a project in a project"),
]


@pytest.mark.parametrize("typed", [pytest.param(typed, id=f"{what}: {typed}") for typed, what in COMMANDS])
def test_no_output_replaces_what_is_read_or_a_file_of_another_kind(work: Path, typed: str):
    if os.name != "posix" and ("link" in typed or "into" in typed or "second" in typed):
        pytest.skip("links need no privilege on POSIX")
    before = contents(work)
    found = noesis(*typed.split(), cwd=work)
    assert found.returncode in (1, 2), found.stdout
    assert found.stderr.splitlines()[-1].startswith("error: ")
    after = contents(work)
    assert after == before


def test_work_with_a_plan_that_is_another_program_s_is_left(work: Path):
    (work / "notes" / "plan.json").write_text('["my plan"]')
    before = contents(work)
    found = noesis("constitution", "prefer", "--critic", "openai:http://127.0.0.1:9/v1:x", "--pairs", "pairs.jsonl",
                   "--out", "notes", cwd=work)  # fmt: skip
    assert found.returncode in (1, 2)
    assert contents(work) == before


@pytest.mark.parametrize("old", [b"GGUF of yesterday", b""], ids=["an earlier GGUF file", "an empty file"])
def test_an_output_of_the_same_kind_may_be_replaced(tmp_path: Path, old: bytes):
    (tmp_path / "x.gguf").write_bytes(old)
    require_output(tmp_path / "x.gguf", "--outfile", inputs=(tmp_path / "model",), starts=b"GGUF")
    with pytest.raises(UsageError, match="is among what is read"):
        require_output(tmp_path / "x.gguf", "--outfile", inputs=(tmp_path,), starts=b"GGUF")


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices have names")
@pytest.mark.parametrize("name", ["pipe", "a link to a pipe", "device"])
def test_an_output_that_is_no_plain_file_is_refused_without_opening_it(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a link to a pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(UsageError, match="is a pipe, a device or a socket: name a file"):
        require_output(tmp_path / name, "--outfile", starts=b"GGUF")


# --- what is copied out of a model's folder


@pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")
@pytest.mark.parametrize(
    "name", ["LICENSE_x", "LICENSE", "NOTICE", "USE_POLICY.md", "tokenizer.json", "x.jinja", "a.model"]
)
@pytest.mark.parametrize("place", ["home/id_rsa", "home/../home/id_rsa", "base/../home/id_rsa"])
def test_a_linked_file_of_a_model_is_not_copied(tmp_path: Path, name: str, place: str):
    for folder in ("home", "base", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "home" / "id_rsa").write_text("secret")
    (tmp_path / "base" / name).symlink_to(tmp_path / place)
    with pytest.raises(UnsafePathError, match="leads out of the model's folder"):
        _write_other_files(tmp_path / "base", tmp_path / "out", "card", None)
    assert all("secret" not in file.read_text() for file in (tmp_path / "out").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")
@pytest.mark.parametrize("kind", ["pipe", "linked folder", "folder", "link to nowhere"])
def test_what_is_no_file_in_a_model_is_left_out(tmp_path: Path, kind: str):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    {
        "pipe": lambda: os.mkfifo(base / "LICENSE"),
        "linked folder": lambda: (base / "LICENSE").symlink_to(tmp_path),
        "folder": (base / "LICENSE").mkdir,
        "link to nowhere": lambda: (base / "LICENSE").symlink_to(tmp_path / "nowhere"),
    }[kind]()
    _write_other_files(base, out, "card", None)
    assert [file.name for file in out.iterdir()] == ["README.md"]


@pytest.mark.skipif(os.name != "posix", reason="links need no privilege here")
def test_the_hubs_cache_is_a_folder_of_links_and_an_imitation_of_it_is_not(tmp_path: Path):
    for top, inside in (("models--who--what", True), ("what", False)):
        snapshot, blob = tmp_path / top / "snapshots" / "1", tmp_path / top / "blobs" / "2"
        snapshot.mkdir(parents=True)
        blob.parent.mkdir()
        blob.write_text("text")
        (snapshot / "LICENSE").symlink_to("../../blobs/2")
        (snapshot / "NOTICE").symlink_to("../../../secret")
        if inside:
            assert file_of_model(snapshot, "LICENSE").read_text() == "text"
        for name in ["NOTICE"] if inside else ["NOTICE", "LICENSE"]:
            with pytest.raises(UnsafePathError):
                file_of_model(snapshot, name)
