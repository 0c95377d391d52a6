"""The manifest: only a run writes it, old formats are read, and a stage is stale exactly when what it read has changed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.manifest import edited_manifest
from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.errors import RunError
from noesis.core.files import sha256_json
from noesis.core.project import Project
from noesis.run.directory import Run, load_run, open_run
from noesis.run.manifest import FORMAT, Extension, Identity, Manifest, Parent
from noesis.run.manifest_file import parse_manifest
from noesis.run.stages import SPECS, STAGES, downstream_of, is_derived, needs_of, readers_of

CONFIG = load_config(Project(ROOT))
IDENTITY = Identity("a", "b", "c", "m", "r")
HELPERS = ROOT / "tests" / "helpers"


def stored(name: str) -> dict:
    return json.loads((HELPERS / name).read_text(encoding="utf-8"))


def do(run: Run, stage: str, text: str = "one", *, file: str | None = None) -> None:
    path = run.path / (file or f"{stage}.txt")

    def work() -> dict:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return {"stage": stage}

    run.perform(stage, work, lambda: [path], again=True)


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """A run with every stage done."""
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    for stage in STAGES:
        do(run, stage)
    return run


def states(run: Run) -> dict[str, str]:
    return {stage: load_run(run.path).state(stage) for stage in STAGES}


# --- the graph


def test_every_stage_comes_after_what_it_needs_and_downstream_is_transitive():
    for stage in STAGES:
        assert all(STAGES.index(need) < STAGES.index(stage) for need in needs_of(stage))
        reached, new = set(), set(readers_of(stage))
        while new:
            reached |= new
            new = {reader for name in new for reader in readers_of(name)} - reached
        assert set(downstream_of(stage)) == reached
    assert needs_of("live_pairs") == () == downstream_of("live_pairs")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_with_another_outcome_makes_stale_what_reads_it_and_nothing_else(finished: Run, stage: str):
    """It went by the order of stages: judging again made the merged model stale, which does not read the judgement."""
    do(finished, stage, "two")
    stale = {name for name, state in states(finished).items() if state == "stale"}
    assert stale == set(downstream_of(stage))
    for name in STAGES[STAGES.index(stage) + 1 :]:  # done again in order, all is well
        if name in stale:
            do(finished, name, "two")
    assert set(states(finished).values()) == {"done"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_with_the_same_outcome_makes_nothing_stale(finished: Run, stage: str):
    do(finished, stage)
    assert set(states(finished).values()) == {"done"}


@pytest.mark.parametrize("stage", STAGES)
def test_while_a_stage_is_not_done_what_reads_it_is_stale(finished: Run, stage: str):
    def interrupted() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished.perform(stage, interrupted, list, again=True)
    expected = dict.fromkeys(STAGES, "done") | dict.fromkeys(downstream_of(stage), "stale") | {stage: "interrupted"}
    assert states(finished) == expected
    do(finished, stage)  # with its old outcome, as after an interruption
    assert set(states(finished).values()) == {"done"}


def test_when_a_stale_stage_ends_as_before_what_reads_it_is_done_again(finished: Run):
    do(finished, "train", "two")
    assert finished.state("merge") == "stale"
    do(finished, "choose")  # the same choice
    assert finished.state("merge") == "done"


def test_a_choice_that_changes_while_its_files_do_not_is_another_outcome(finished: Run):
    file = finished.path / "choose.txt"
    finished.perform("choose", lambda: {"adapter": "epoch_1"}, lambda: [file], again=True)
    assert finished.state("merge") == "stale"


def test_a_stage_that_ran_without_one_between_is_stale_when_either_changes(tmp_path: Path):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    do(run, "train")
    do(run, "merge")  # no choice was made yet: it took the last epoch
    do(run, "train")
    assert run.state("merge") == "done"
    do(run, "choose")
    assert run.state("merge") == "stale"


def test_derived_files_are_outside_the_digest_and_can_be_written_again(finished: Run):
    """A trial rewrote the model card, and the GGUF files then failed verification: `merge changed since`."""
    card = finished.merged / "README.md"
    do(finished, "merge", "card", file=card.relative_to(finished.path).as_posix())
    do(finished, "gguf")
    digest = finished.manifest.stages["merge"].digest()
    finished.write_derived("merge", card, "card with a verdict")
    again = load_run(finished.path)
    assert again.manifest.stages["merge"].digest() == digest
    assert again.is_done("merge") and again.is_done("gguf")
    assert again.changed("merge", thoroughly=True) == []
    card.write_text("a verdict that nobody gave")
    assert again.changed("merge", thoroughly=True) == [f"{card.relative_to(again.path).as_posix()}: changed"]
    with pytest.raises(ValueError, match="not a derived file"):
        finished.write_derived("merge", finished.merged / "model.safetensors", "x")


# --- what is on disk


def test_a_manifest_is_read_as_it_was_written(finished: Run):
    finished.set_parent(Parent("p", "epoch_0", "d", 3, IDENTITY))
    finished.extend(IDENTITY, CONFIG)
    assert finished.manifest.history == (Extension(3, finished=True),)
    again = load_run(finished.path)
    assert again.manifest == finished.manifest
    assert json.loads((finished.path / "manifest.json").read_text())["format"] == FORMAT
    assert Manifest.from_json(again.manifest.to_json()) == again.manifest
    assert states(finished) == {"export": "done"} | dict.fromkeys(STAGES[1:], "stale")


def test_a_newer_format_is_refused(finished: Run):
    with edited_manifest(finished.path) as manifest:
        manifest["format"] = FORMAT + 1
    with pytest.raises(RunError, match=rf"manifest.json has format {FORMAT + 1}.*update Noesis"):
        load_run(finished.path)


@pytest.mark.parametrize("name", ["golden_run/manifest.json", "golden_trial_manifest.json"])
def test_every_stage_of_a_finished_run_of_version_0_1_0_is_done(name: str):
    """The second one's trial had rewritten the model card that `gguf` recorded."""
    manifest = parse_manifest(stored(name))
    assert {stage: manifest.state(stage) for stage in manifest.stages} == dict.fromkeys(manifest.stages, "done")
    assert Manifest.from_json(manifest.to_json()) == manifest
    derived = {name for record in manifest.stages.values() for name, file in record.outputs.items() if file.derived}
    assert derived == {f"merged/{manifest.output_name}/README.md", "report.html"}


def test_a_run_of_version_0_1_0_whose_plan_was_replaced_after_running_out_of_memory_is_done():
    value = stored("golden_run/manifest.json")
    plan, train = value["stages"]["plan"], value["stages"]["train"]
    plan["result"] |= {"precision": "a smaller plan"}
    assert parse_manifest(value).state("train") == "stale"
    train["result"]["out_of_memory_once"] = True
    assert parse_manifest(value).state("train") == "done"


def test_what_changed_in_a_run_of_version_0_1_0_is_still_seen():
    value = stored("golden_trial_manifest.json")
    value["stages"]["merge"]["started"] = value["stages"]["report"]["started"]  # merged again, after the GGUF files
    manifest = parse_manifest(value)
    assert manifest.state("gguf") == "stale"
    value = stored("golden_run/manifest.json")
    value["stages"]["export"]["outputs"]["data/train.jsonl"]["sha256"] = "0"
    assert parse_manifest(value).state("plan") == "stale"


def test_the_outputs_of_a_real_run_are_those_that_its_stages_declare():
    from fnmatch import fnmatchcase

    for stage, record in parse_manifest(stored("golden_trial_manifest.json")).stages.items():
        for name in record.outputs:
            assert any(fnmatchcase(name, pattern) for pattern in SPECS[stage].outputs), (stage, name)
            assert record.outputs[name].derived == is_derived(stage, name)


def test_the_result_of_training_says_what_was_executed_and_the_plan_stays(tmp_path: Path):
    run = open_run(tmp_path / "r", IDENTITY, CONFIG)
    run.perform("plan", lambda: {"precision": "bf16"}, list)
    assert run.executed_plan() == {"precision": "bf16"}
    run.perform("train", lambda: {"smaller_plan": {"precision": "nf4"}}, list)
    assert (run.result("plan"), run.executed_plan()) == ({"precision": "bf16"}, {"precision": "nf4"})
    assert run.is_done("train")
    assert run.manifest.stages["train"].inputs == {"plan": run.manifest.stages["plan"].digest()}
    assert run.manifest.stages["plan"].digest() == sha256_json({"files": {}, "result": {"precision": "bf16"}})


# --- nobody else writes it


MUTATORS = {"update", "setdefault", "pop", "popitem", "append", "extend", "clear", "insert"}


def _changes(tree: ast.AST) -> Iterator[ast.expr]:
    """What is assigned to, deleted, or has a method called that changes it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            yield from node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            yield node.target
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield node.func.value


def test_only_the_run_package_changes_a_manifest():
    wrong = []
    for file in (ROOT / "src" / "noesis").rglob("*.py"):
        if file.parent.name == "run":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        places = [node for target in _changes(tree) for node in ast.walk(target)]
        wrong += [
            f"{file.name}:{node.lineno}"
            for node in places
            if isinstance(node, ast.Attribute) and node.attr == "manifest"
        ]
        private = {"_manifest", "_save"}
        wrong += [
            f"{file.name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in private and ast.unparse(node.value).endswith("run")
        ]
    assert wrong == []
