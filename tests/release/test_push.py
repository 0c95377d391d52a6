"""`noesis push` against a Hub on loopback (tests/helpers/endpoints/hub_server.py)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import noesis as package
from helpers.command import noesis
from helpers.endpoints.hub_server import OTHERS_TOKEN, TOKEN, Hub, Repository, local_hub
from helpers.project import small_project_in
from helpers.tiny_runs import toy_tribunal
from noesis.core.errors import UsageError
from noesis.pipeline.results import RunResults
from noesis.release.hub.licence import terms_of
from noesis.release.provenance import Provenance
from noesis.tribunal.court import Ruling

Push = Callable[..., subprocess.CompletedProcess[str]]
LLAMA = Provenance(base="meta-llama/Llama-3.1-8B-Instruct")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of a tiny model with a merged model and a certified GGUF file, and no verdict."""
    root = tmp_path_factory.mktemp("push")
    project = small_project_in(root / "project")
    toy_tribunal(project.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOESIS_CACHE", str(root / "cache"))
        run = package.train(
            project, root / "mine", model=str(tiny_model), language="en", epochs=1, max_examples=8, learning_rate=1e-2
        )
        package.merge(run)
        package.export_gguf(run, ["f16"])
    return run.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "mine")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with local_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        assert server.unknown == []


def push(run: Path, *more: object, allow: str = "undecided") -> subprocess.CompletedProcess[str]:
    done = noesis("push", run, "--repo", "mine", *(["--allow", allow] if allow else []), *more)
    assert TOKEN not in done.stdout + done.stderr
    return done


def one_message(done: subprocess.CompletedProcess[str], says: str, code: int = 1) -> None:
    assert done.returncode == code and done.stderr.count("error:") == 1, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_and_its_examples_are_published_privately_in_one_commit(hub: Hub, run: Path):
    done = push(run, "--dataset", "mine-examples", "--dataset-licence", "cc-by-4.0", "--json")
    assert done.returncode == 0, done.stderr
    model, dataset = hub.repositories["models/ana/mine"], hub.repositories["datasets/ana/mine-examples"]
    assert model.private and dataset.private and len(model.commits) == len(dataset.commits) == 1
    assert {"config.json", "model.safetensors", "tokenizer.json", "noesis.json", "parity.json", "Modelfile"} <= set(
        model.files
    )
    assert {"adapter/adapter_model.safetensors", "noesis-philosopher-v1-f16.gguf"} <= set(model.files)
    assert (
        hub.objects[str(model.files["model.safetensors"])]
        == next((run / "merged").rglob("model.safetensors")).read_bytes()
    )
    card = hub.text("models/ana/mine", "README.md")
    assert "datasets: [ana/mine-examples]" in card.split("---")[1] and "UNDECIDED" in card and "`adapter/`" in card
    croissant = json.loads(hub.text("datasets/ana/mine-examples", "croissant.json"))
    assert [file["name"] for file in croissant["distribution"]] == ["train.jsonl", "eval.jsonl"]
    assert "license: cc-by-4.0" in hub.text("datasets/ana/mine-examples", "README.md")
    result = json.loads(done.stdout)
    assert result["model"]["url"] == f"{hub.url}/ana/mine" and result["model"]["private"]
    assert package.load_run(run).result("push") == result
    held = [content for repository in hub.repositories.values() for content in repository.files.values()]
    assert not any(TOKEN in str(content) for content in [*held, *hub.objects.values()])
    assert all(TOKEN.encode() not in file.read_bytes() for file in run.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_push_that_was_cut_short_goes_on_and_a_second_one_sends_nothing(hub: Hub, run: Path):
    hub.refuse_after = 1
    one_message(push(run), "storage quota exceeded")
    assert hub.repositories["models/ana/mine"].commits == []  # nobody saw half of it
    hub.refuse_after = None
    assert push(run).returncode == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == 3 and len(hub.repositories["models/ana/mine"].commits) == 1
    assert push(run).returncode == 0
    assert len(hub.uploads) == 3 and len(hub.repositories["models/ana/mine"].commits) == 1


@pytest.mark.slow
def test_what_an_earlier_push_left_is_taken_away(hub: Hub, run: Path):
    assert push(run).returncode == 0
    files = hub.repositories["models/ana/mine"].files
    files |= {"old-q8_0.gguf": "0" * 64, "picture.png": b"x"}
    assert push(run, "--public").returncode == 0
    files = hub.repositories["models/ana/mine"].files
    assert "old-q8_0.gguf" not in files and "picture.png" in files


@pytest.mark.slow
def test_what_keeps_a_run_from_being_pushed(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    one_message(push(run, allow=""), "--allow undecided")
    one_message(push(run, allow="everything"), "choose from undecided, conditional, rejected, uncertified", 2)
    monkeypatch.setattr(RunResults, "ruling", Ruling("REJECTED", "Veritas is below its floor"))
    one_message(push(run), "has the verdict REJECTED (Veritas is below its floor)")
    assert push(run, allow="rejected").returncode == 0
    monkeypatch.undo()
    hub.requests.clear()
    weights = next((run / "merged").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    one_message(push(run), "changed since the run made them")
    shutil.rmtree(run / "gguf")
    assert hub.requests == []


@pytest.mark.slow
def test_a_run_without_a_certificate(hub: Hub, run: Path):
    shutil.rmtree(run / "gguf")
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    del manifest["stages"]["gguf"]
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    one_message(push(run), "--allow uncertified")
    assert push(run, "--allow", "uncertified").returncode == 0
    assert not any(name.endswith(".gguf") for name in hub.repositories["models/ana/mine"].files)


@pytest.mark.slow
def test_names_that_are_taken_and_tokens_that_are_bad(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    hub.repositories["models/bruno/open"] = Repository(False, {"noesis.json": b"{}"})
    hub.repositories["models/bruno/hidden"] = Repository(True, {})
    hub.repositories["models/ana/mine"] = Repository(True, {"my-own-model.bin": b"x"})
    one_message(push(run), "'my-own-model.bin'", 2)
    hub.repositories["models/ana/mine"] = Repository(False, {"noesis.json": b"{}"})
    one_message(push(run), "exists and is public", 2)
    for name in ("bruno/open", "bruno/hidden", "bruno/new"):
        one_message(push(run, "--repo", name, "--public"), f"{name} is another's")
    one_message(push(run, "--repo", "no such/name"), "is no name for the Hub", 2)
    monkeypatch.setenv("HF_TOKEN", OTHERS_TOKEN[:-1] + "x")
    one_message(push(run), "does not accept the token")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(run))
    one_message(push(run), "no token for the Hub", 2)
    assert hub.uploads == []


@pytest.mark.slow
def test_without_a_network(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    one_message(push(run), "can't be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    one_message(push(run), "HF_HUB_OFFLINE is set")


def test_a_llama_keeps_its_name_and_its_notice():
    terms = terms_of(LLAMA)
    with pytest.raises(UsageError, match="--repo ana/Llama-mine"):
        terms.require_name("ana/mine")
    terms.require_name("ana/llama-mine")
    assert terms.with_text and "Copyright © Meta Platforms" in terms.notice
    assert terms_of(Provenance(base="google/gemma-3-1b-it")).notice.startswith("Gemma is provided under")
    assert terms_of(Provenance(base="smollm2", licence="Apache-2.0")).prefix == ""


@pytest.mark.slow
def test_the_notice_and_the_text_of_a_llama_go_with_it(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("noesis.pipeline.publish.contents.read_provenance", lambda _: LLAMA)
    one_message(push(run), "begins with Llama", 2)
    one_message(push(run, "--repo", "Llama-mine"), "--licence-file FILE", 2)
    licence = tmp_path / "agreement.txt"
    licence.write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", encoding="utf-8")
    assert push(run, "--repo", "Llama-mine", "--licence-file", licence).returncode == 0
    assert hub.text("models/ana/Llama-mine", "LICENSE").startswith("LLAMA 3.1")
    assert "Llama 3.1 Community License" in hub.text("models/ana/Llama-mine", "NOTICE")
