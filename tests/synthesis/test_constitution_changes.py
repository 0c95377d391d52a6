"""`noesis constitution check|diff|prompts`: what the document reaches, what hangs on a change, prompts dealt out evenly."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from helpers.judge_server import Asked, JudgeServer
from helpers.manifest import write_manifest
from helpers.project import ROOT
from noesis.cli import run_command
from noesis.constitution.diff import compare
from noesis.constitution.document import load_constitution, read_constitution
from noesis.core.errors import ConfigError, RunError, UsageError
from noesis.core.project import Project
from noesis.dataset.checks.validate import validate
from noesis.pipeline.comparison.by_principle import compare_runs
from noesis.synthesis.coverage import check_coverage
from noesis.synthesis.critique_revision import Settings
from noesis.synthesis.make_prompts import PromptsRequest, make_prompts
from noesis.synthesis.prompt_combinations import deal, read_lists
from noesis.synthesis.renewal import RenewalRequest, dependents, renew
from noesis.tribunal.rubric import JUDGES, load_rubrics

CONSTITUTION = ROOT / "data" / "constitution.yaml"


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def edit(file: Path, old: str, new: str) -> int:
    """Replace a text once; returns its line."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


# --- check


def test_the_committed_constitution_covers_everything():
    found = check_coverage(Project(ROOT))
    assert found.mistakes == []
    assert [(c.principle, c.gaps) for c in found.covers if c.gaps] == []
    assert all(c.items and c.prompts and c.examples["pt"] and c.examples["en"] for c in found.covers)


def test_every_principle_has_requests_of_its_own_in_both_languages():
    principles = load_constitution(CONSTITUTION).principles
    texts = [text for p in principles for both in (p.critique, p.revision) for text in (both["pt"], both["en"])]
    assert len(set(texts)) == 4 * len(principles)


def test_requests_are_no_part_of_what_a_run_is_known_by(tmp_path: Path):
    before = load_constitution(CONSTITUTION)
    shutil.copyfile(CONSTITUTION, tmp_path / "c.yaml")
    edit(
        tmp_path / "c.yaml",
        "Quote each sentence of the answer that claims",
        "Name each sentence of the answer that claims",
    )
    after = load_constitution(tmp_path / "c.yaml")
    assert after.digest() == before.digest()
    assert after.requests_digest() != before.requests_digest()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'value: justica\n    pt: "Noesis considera',
            'value: coragem\n    pt: "Noesis considera',
            "the unknown value 'coragem'",
        ),
        ("id: mesma-medida", "id: fontes-reais", "'fontes-reais' is used twice"),
        (
            '    en: "Noesis lays out premises',
            '    fr: "Noesis lays out premises',
            "(raciocinio-visivel).fr: a language that the system prompt lacks",
        ),
        (
            '      en: "Quote each sentence',
            '      fr: "Quote each sentence',
            "(afirmar-o-que-sustenta).critique.fr: a language that the system prompt lacks",
        ),
    ],
)
def test_a_mistake_is_told_by_its_line(
    project: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
):
    file = Project(project).constitution
    first = edit(file, old, new)
    assert run_command(["constitution", "check", "--project", str(project)]) == 1
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if said in line)
    assert line.startswith(f"{file}:{first}:")


def test_all_mistakes_are_told_not_only_the_first(project: Path):
    file = Project(project).constitution
    edit(file, "id: mesma-medida", "id: fontes-reais")
    edit(file, 'value: alianca\n    pt: "Noesis retoma', 'value: coragem\n    pt: "Noesis retoma')
    _, mistakes = read_constitution(file)
    assert [m.message.split(": ", 1)[1] for m in mistakes if "twice" in m.message or "coragem" in m.message]
    assert len(mistakes) == 2


def test_an_item_that_tests_nothing_and_one_that_tests_what_is_not_there(project: Path):
    file = project / "data/tribunal/judges/veritas.yaml"
    nothing = edit(file, "principles: [fontes-reais]", "principles: []")
    edit(file, "principles: [firmeza-sob-pressao]", "principles: [coragem]")
    found = check_coverage(Project(project))
    told = [str(m) for m in found.mistakes]
    assert len(told) == 2
    assert told[0].startswith(f"{file}:") and "'fontes_reais' tests nothing" in told[0]
    assert 0 < nothing - int(told[0].split(":")[1]) < 20  # the line on which the item begins
    assert "tests 'coragem'" in told[1]
    assert {c.principle: c.gaps for c in found.covers if c.gaps} == {
        "fontes-reais": ["no judge's item tests it"],
        "firmeza-sob-pressao": ["no judge's item tests it"],
    }


def test_gaps_are_listed_and_no_mistake(project: Path, capsys: pytest.CaptureFixture[str]):
    file = Project(project).constitution
    text = file.read_text(encoding="utf-8")
    extra = '  - id: silencio\n    value: sabedoria\n    pt: "Noesis sabe calar."\n    en: "Noesis knows how to be silent."\n'
    file.write_text(text.replace("principles:\n", "principles:\n" + extra, 1), encoding="utf-8")
    assert run_command(["constitution", "check", "--project", str(project)]) == 0
    printed = capsys.readouterr().out
    for gap in ("no example in pt names it", "no judge's item tests it", "no critique request"):
        assert f"gap: silencio: {gap}" in printed


def test_show_names_what_there_is(capsys: pytest.CaptureFixture[str]):
    assert run_command(["constitution", "show", "fontes-reais", "--project", str(ROOT)]) == 0
    printed = capsys.readouterr().out
    assert "veritas.fontes_reais" in printed and "critique: List the authors" in printed
    assert run_command(["constitution", "show", "coragem", "--project", str(ROOT)]) == 2


# --- diff


@pytest.fixture
def changed(project: Path, tmp_path: Path):
    """(project, old constitution, new constitution): one principle's text changed, one removed."""
    old = tmp_path / "old.yaml"
    shutil.copyfile(Project(project).constitution, old)
    edit(
        Project(project).constitution,
        "Noesis cites authors and works that exist,",
        "Noesis names authors and works that exist,",
    )
    edit(old, "id: escuta-fiel", "id: escuta-antiga")
    return Project(project), load_constitution(old), load_constitution(Project(project).constitution)


def test_a_diff_names_what_changed_and_what_hangs_on_it(changed):
    project, old, new = changed
    changes = compare(old, new)
    assert [(c.what, c.id, c.kind) for c in changes] == [
        ("principle", "escuta-antiga", "removed"),
        ("principle", "escuta-fiel", "added"),
        ("principle", "fontes-reais", "text (en)"),
    ]
    hanging = {d.principle: d for d in dependents(project, old, new, changes)}
    assert len(hanging["fontes-reais"].examples["pt"]) == 23
    assert hanging["fontes-reais"].items == ["veritas.fontes_reais"]
    assert hanging["escuta-antiga"].examples == {} and hanging["escuta-antiga"].items == []
    assert compare(new, new) == []


def test_apply_writes_new_critiques_beside_the_hand_written_ones(changed, tmp_path: Path):
    project, old, new = changed
    before = {f: f.read_bytes() for f in sorted(project.training.rglob("*.jsonl"))}

    def part(asked: Asked) -> str:
        wanted = "Noesis names authors" in asked.user or "Noesis cita autores" in asked.user
        assert wanted
        if asked.body["messages"][0]["content"].startswith("Você"):
            return "A resposta não cita nenhuma obra que exista, e por isso não há como saber de onde vem o que ela afirma com tanta certeza."
        return "The answer cites no work that exists, so that there is no telling where its claims, made with such confidence, come from."

    with JudgeServer(part) as server:
        ask = RenewalRequest(f"openai:{server.url}:scripted", tmp_path / "new", Settings(shots=0))
        made = renew(project, new, compare(old, new), ask)
        assert made.principles == ("fontes-reais",)
        assert made.made == made.due == len(server.requests) > 40
        with pytest.raises(UsageError, match="hand-written"):
            renew(
                project,
                new,
                compare(old, new),
                RenewalRequest("openai:http://127.0.0.1:1/v1:x", project.training / "philosophical"),
            )
        with pytest.raises(UsageError, match="nothing to renew"):
            renew(project, new, [], ask)
    assert before == {f: f.read_bytes() for f in sorted(project.training.rglob("*.jsonl"))}
    report = validate([tmp_path / "new/critiques.jsonl"], new, (), whole=False, keep_examples=True)
    assert report.total("error") == 0 and len(report.table) == made.made
    assert all(e.to_json()["generated"] and e.principles == ("fontes-reais",) for e in report.table.examples)


def make_run(path: Path, points: dict[str, int], model: str = "judge") -> None:
    """A run of which only the manifest and the verdicts are there; every item of every judge gets the prompt's points."""
    bench = load_rubrics(ROOT / "data/tribunal/judges")
    (path / "tribunal").mkdir(parents=True)
    write_manifest(path)
    rows = []
    for prompt, score in points.items():
        for who in ("base", "tuned"):
            given = score if who == "tuned" else 0
            verdicts = [
                {
                    "status": "scored",
                    "judge": j,
                    "model": model,
                    "rubric_sha256": "r",
                    "items": [{"id": i.id, "score": given} for i in bench.rubrics[j].items],
                }
                for j in JUDGES
            ]
            rows.append({"answer": f"{prompt}/{who}/0", "verdicts": verdicts})
    (path / "tribunal/verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_two_runs_are_compared_principle_by_principle(tmp_path: Path):
    prompts = [f"p{i}" for i in range(20)]
    make_run(tmp_path / "a", dict.fromkeys(prompts, 1))
    make_run(tmp_path / "b", {p: 2 if i % 4 else 1 for i, p in enumerate(prompts)})
    found = compare_runs(Project(ROOT), tmp_path / "a", tmp_path / "b")
    assert set(found.by_principle) == load_constitution(CONSTITUTION).principle_ids
    figures = found.by_principle["fontes-reais"]
    assert (figures.prompts, figures.a, figures.b, figures.difference) == (20, 0.5, 0.875, 0.375)
    assert figures.interval_95 is not None
    low, high = figures.interval_95
    assert 0.2 < low < 0.375 < high < 0.5
    assert figures.p < 0.01
    make_run(tmp_path / "c", dict.fromkeys(prompts, 1), model="another")
    with pytest.raises(RunError, match="no judge"):
        compare_runs(Project(ROOT), tmp_path / "a", tmp_path / "c")


# --- prompts


def test_lists_are_dealt_out_evenly_and_never_twice():
    lists = read_lists(ROOT / "data/constitution_prompts.yaml")
    seeds = deal(lists, ("pt", "en"), 880, 3)
    assert len({(s.language, s.topic.id, s.situation.id, s.asker.id, s.difficulty) for s in seeds}) == 880
    assert set(Counter(s.topic.id for s in seeds if s.language == "en").values()) <= {
        9,
        10,
        11,
    }  # 440 of 44 topics; a repeat is dealt again
    assert set(Counter(s.asker.id for s in seeds if s.language == "pt").values()) <= {21, 22, 23}
    assert [s.instruction(lists) for s in deal(lists, ("pt", "en"), 880, 3)] == [s.instruction(lists) for s in seeds]
    small = lists.model_copy(
        update={"topics": lists.topics[:2], "situations": lists.situations[:3], "askers": lists.askers[:2]}
    )
    assert len({(s.topic.id, s.situation.id, s.asker.id, s.difficulty) for s in deal(small, ("en",), 36, 0)}) == 36
    with pytest.raises(UsageError, match="36 prompts"):
        deal(small, ("en",), 37, 0)


def test_without_a_model_instructions_are_written(project: Path, tmp_path: Path):
    report = make_prompts(Project(project), PromptsRequest(tmp_path / "out", count=10))
    rows = lines(tmp_path / "out/instructions.jsonl")
    assert report["kept"] == len(rows) == 10
    assert all("prompt" not in row and row["instruction"] for row in rows)


def test_a_model_phrases_them_and_what_exists_is_left_out(project: Path, tmp_path: Path):
    known = lines(ROOT / "data/training/philosophical_en/maieutica.jsonl")[0]["prompt"]

    def part(asked: Asked) -> str:
        if asked.number == 2:
            return known
        if asked.number in (3, 4):
            return "My brother says that the fence between our gardens is mine to mend, though he broke it with his van. Must I pay?"
        words = asked.user.split("What happened: ")[1].split("\n")[0]
        return (
            f"I write to you, number {asked.number}, because {words}. What should I look at before I decide anything?"
        )

    with JudgeServer(part) as server:
        ask = PromptsRequest(tmp_path / "out", ("en",), 8, f"openai:{server.url}:scripted")
        report = make_prompts(Project(project), ask)
    assert report["left_out"] == {"asks what another asks": 2}
    rows = lines(tmp_path / "out/prompts.jsonl")
    assert len(rows) == 6
    assert all(row["generated"] and row["lineage"]["topic"] for row in rows)


def test_a_wrong_list_is_told_by_its_line(tmp_path: Path):
    file = tmp_path / "p.yaml"
    shutil.copyfile(ROOT / "data/constitution_prompts.yaml", file)
    line = edit(file, "{id: jantar, pt:", "{id: jantar, xx:")
    with pytest.raises(ConfigError, match=rf"p\.yaml:{line}: unknown key 'situations\.0\.xx'"):
        read_lists(file)
