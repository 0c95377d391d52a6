"""`noesis init --domain`: a library's assistant in Spanish, from the drafts to a served model, with nothing of Noesis's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT, example_record
from helpers.tiny_runs import OVERRIDES, run_all
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.project import Project, find_project
from noesis.dataset.export import held_out_rows
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.suite import read_suite
from noesis.workspace.own_project import Purpose

DOMAIN, NAME = "la biblioteca pública de Olinda", "Biblioteca São João"
# The software may be named by its commands, files and addresses, and as what a model was made with.
SOFTWARE = re.compile(
    r"noesis [a-z<]|noesis\.json|noesis-\w+\.(?:part|sock)|/noesis/|made with Noesis|noesis\.[a-z_]+\b|noesis_\w+"
    r"|NOESIS_[A-Z_<>]+|\"noesis\": \"\d|engine: noesis|\"engine\": ?\"noesis\"|owned_by|Noesis \d"
)
STRANGE = re.compile(r"noesis|philosoph|fil[oó]sof|hundred|\bveritas.{0,3}(?:verdade|truth)\b", re.IGNORECASE)


def strange_lines(text: str) -> list[str]:
    """The lines that name another project than this one."""
    return [line.strip()[:200] for line in text.split("\n") if STRANGE.search(SOFTWARE.sub("", line))]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("own") / "biblio"
    done = noesis("init", folder, "--domain", DOMAIN, "--name", NAME, "--language", "es")
    assert done.returncode == 0, done.stderr
    project = Project(folder)
    (examples,) = project.sources("es")
    drafts = [json.loads(line) for line in (examples / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    more = [  # twelve examples
        draft
        | {"id": f"{draft['id']}_{i}", "prompt": f"{draft['prompt']} ({i}: {word})"}
        | {"response_revised": f"{word.capitalize()}: {i}. " + " ".join(reversed(draft["response_revised"].split()))}
        for draft in drafts
        for i, word in enumerate(("sala infantil", "hemeroteca", "préstamo"))
    ]
    (examples / "more.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in more), encoding="utf-8"
    )
    return project


def test_the_drafts_are_whole_and_the_projects_own(library: Project):
    constitution = load_constitution(library.constitution)
    assert (constitution.name, constitution.languages, constitution.model_id) == (NAME, ("es",), "biblioteca-sao-joao")
    checked = noesis("constitution", "check", "--project", library.root)
    assert checked.returncode == 0 and "0 mistakes" in checked.stdout
    assert noesis("data", "validate", "--project", library.root).returncode == 0
    training = load_config(library).training
    assert (training.data.language, training.output_name) == ("es", "biblioteca-sao-joao-v1")
    assert training.demo.language is None and training.modal.volume == "biblioteca-sao-joao-data"
    rubrics = load_rubrics(library.tribunal / "judges")
    items = {name for rubric in rubrics.rubrics.values() for item in rubric.items for name in item.principles}
    assert items == constitution.principle_ids
    assert {sample.language for sample in read_suite(library.tribunal)} == {"es"}
    readme = (library.root / "README.md").read_text(encoding="utf-8")
    assert "data/constitution.yaml" in readme and DOMAIN in readme
    for file in library.root.rglob("*"):
        if file.is_file() and not file.name.endswith(".schema.json"):
            assert strange_lines(file.read_text(encoding="utf-8")) == [], file


def test_drafts_are_written_again_only_when_asked(library: Project, tmp_path: Path):
    project = Project(shutil.copytree(library.root, tmp_path / "copy"))
    rubric = project.tribunal / "judges" / "dike.yaml"
    rubric.write_text("mine", encoding="utf-8")
    words = ("constitution", "draft", "--domain", DOMAIN, "--project", project.root)
    refused = noesis(*words)
    assert refused.returncode == 2 and "--again" in refused.stderr and rubric.read_text(encoding="utf-8") == "mine"
    assert noesis(*words, "--again").returncode == 0
    assert load_rubrics(project.tribunal / "judges")


@pytest.mark.parametrize(
    ("name", "domain", "language", "said"),
    [
        ("a", "x\ny", "pt", "--domain"),
        ("☃", "x", "pt", "Latin"),
        ("a", "x", "portuguese", "ISO 639-1"),
        ("a" * 300, "x", "pt", "--name"),
    ],
)
def test_what_a_project_is_for_is_checked(name: str, domain: str, language: str, said: str):
    with pytest.raises(UsageError, match=said):
        Purpose(name, domain, language)


def test_a_constitution_in_portuguese_alone_and_without_judges(tmp_path: Path):
    file = tmp_path / "c.yaml"
    text = """
version: "1"
name: Aurora
values: [{id: cuidado, pt: {name: CUIDADO, text: Cuidar.}}]
principles: [{id: cuidar, value: cuidado, pt: Cuida.}]
system_prompt: {pt: Você é Aurora.}
"""
    file.write_text(text, encoding="utf-8")
    constitution = load_constitution(file)
    assert constitution.languages == ("pt",) and constitution.system_prompt["en"] == "Você é Aurora."
    assert constitution.model_dump(mode="json")["system_prompt"] == {"pt": "Você é Aurora."}
    file.write_text(text.replace("pt: Cuida.", "es: Cuida."), encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.yaml:5: .*cuidar.*a language that the system prompt lacks"):
        load_constitution(file)
    file.write_text(text.replace(", pt: Cuida.", ""), encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.yaml:5: .*cuidar.*no text"):
        load_constitution(file)


def test_of_a_small_set_a_fifth_is_held_out(library: Project):
    from noesis.dataset.checks.validate import validate

    record = example_record()
    topics = [
        "o",
        "mar",
        "a",
        "lei",
        "o",
        "riso",
        "a",
        "chuva",
        "o",
        "pão",
        "a",
        "dívida",
        "o",
        "sono",
        "a",
        "fé",
        "a",
        "guerra",
        "o",
        "jogo",
        "a",
        "arte",
        "o",
        "medo",
    ]
    rows = [
        record
        | {"id": f"r{i}", "category": f"c{i % 5}", "prompt": f"{topics[2 * i + 1]}: {i * 7919} {topics[2 * i]}?" * 2}
        | {"response_revised": " ".join(f"{topics[2 * i + 1]}{k * (i + 3)}" for k in range(30))}
        for i in range(12)
    ]
    file = library.root / "twelve.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = validate([file], load_constitution(ROOT / "data" / "constitution.yaml"), (), whole=True)
    assert len(report.table) == 12, report.problems
    assert int(held_out_rows(report.table, report.clusters, load_config(Project(ROOT))).sum()) == 2
    file.unlink()


def test_a_language_is_checked_where_it_is_only_that_of_the_comments(tmp_path: Path):
    refused = noesis("init", tmp_path / "new", "--language", "xx")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --language 'xx': give an ISO 639-1 code, for example pt, en or es\n",
    )
    assert not (tmp_path / "new").exists()


def test_the_demo_keeps_to_the_language_that_has_the_examples(tmp_path: Path):
    """A project as 0.1 made it, its Portuguese examples written and its three English ones left."""
    from noesis.pipeline.demo import demo_config

    assert noesis("init", tmp_path / "old").returncode == 0
    old = Project(tmp_path / "old")
    for schema in ("training", "lora"):  # 0.1 had none
        old.schema(schema).unlink()
    assert demo_config(old).training.data.language == "en"
    with (old.sources("pt")[0] / "examples.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps(example_record()) + "\n")
    assert demo_config(old).training.data.language == "pt"


def test_the_project_is_found_alike(library: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(library.training)
    monkeypatch.delenv("NOESIS_PROJECT", raising=False)
    assert find_project().root == library.root
    monkeypatch.setenv("NOESIS_PROJECT", str(ROOT))
    assert find_project().root == ROOT and find_project(library.root).root == library.root


@pytest.mark.slow
def test_from_the_drafts_to_a_served_model(library: Project, tiny_model: Path, tmp_path: Path):
    path = tmp_path / "run"
    run_all(library, tiny_model, path, **{"training.data.language": "es", "training.gguf.quantizations": ("f16",)})
    assert OVERRIDES
    card = (path / "merged" / "biblioteca-sao-joao-v1" / "README.md").read_text(encoding="utf-8")
    assert "language: [es]" in card and "Each GGUF file was compared" not in card
    for file in (path / "report.html", path / "gguf" / "Modelfile", *path.rglob("README.md"), *path.rglob("*.jsonl")):
        assert strange_lines(file.read_text(encoding="utf-8")) == [], file

    shown = noesis("connect", path, "--target", "python")
    assert "model='biblioteca-sao-joao'" in shown.stdout and strange_lines(shown.stdout) == []
    command = [sys.executable, "-m", "noesis", "serve", str(path), "--port", "0", "--ui", "--key", "k" * 20]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Try"):
                break
        url = next(line for line in said if line.startswith("Serving")).split(" at ")[1].strip().removesuffix("/v1")
        assert "biblioteca-sao-joao" in "".join(said)

        def get(place: str) -> str:
            request = urllib.request.Request(url + place, headers={"Authorization": "Bearer " + "k" * 20})
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read().decode()

        page = get("/")
        assert f"<title>{NAME}</title>" in page and f"<h1>{NAME}</h1>" in page
        models = {model["id"] for model in json.loads(get("/v1/models"))["data"]}
        assert "biblioteca-sao-joao" in models and all(name.startswith("biblioteca-sao-joao") for name in models)
        assert json.loads(get("/noesis/about"))["languages"] == ["es"]
        assert strange_lines("".join(said)) == [] and strange_lines(page) == []
    finally:
        process.terminate()
        process.wait(120)
