"""`noesis tribunal train-judge`: what it trains on, and the whole way from pairs to a seat on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from noesis.core.config import load_config
from noesis.core.errors import CapError, DataError, RunError, UsageError
from noesis.core.project import Project
from noesis.dataset.load import read_hand_written
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.train_judge.pairs import collect_pairs, cut, fit_pairs, giveaways, split_by_prompt
from noesis.tribunal.calibration_store import load_calibration
from noesis.tribunal.panel import read_rubrics


def configured(project: Project, **settings: object):
    return load_config(project, {f"training.judge_training.{name}": value for name, value in settings.items()})


# --- the pairs


@pytest.mark.parametrize(
    ("words", "expected"),
    [(1, "Um dois."), (3, "Um dois. Três!"), (5, "Um dois. Três! Quatro cinco?"), (99, "Um dois. Três! Quatro cinco?")],
)
def test_an_answer_is_cut_at_the_sentence_nearest_to_the_length(words: int, expected: str):
    assert cut("Um dois. Três! Quatro cinco?", words) == expected


def test_length_does_not_tell_the_revised_answer_from_the_weak_one(project: Path):
    """Uncut, the revised one is longer in every example."""
    found = Project(project)
    pairs = collect_pairs(found, configured(found, sources=["examples"]))
    examples = [*read_hand_written(found, "pt"), *read_hand_written(found, "en")]
    assert len(pairs) == len(examples)
    assert all(len(e.response_revised) > len(e.response_initial) for e in examples)
    assert giveaways(pairs)["length"]["accuracy"] < 0.62


def test_a_prompt_of_the_benchmark_is_refused(small_project: Project):
    pair = json.loads((small_project.tribunal / "judge_bench" / "pairs.jsonl").read_text().splitlines()[0])
    (file, *_) = sorted((small_project.training / "philosophical").glob("*.jsonl"))
    first, *rest = file.read_text().splitlines()
    example = json.loads(first) | {"prompt": pair["prompt"] + " "}
    file.write_text("\n".join([json.dumps(example, ensure_ascii=False), *rest]) + "\n")
    with pytest.raises(DataError, match="questions of the Tribunal or of its benchmark"):
        collect_pairs(small_project, configured(small_project))


def test_pairs_without_a_file_say_which_key_to_set(small_project: Project):
    with pytest.raises(UsageError, match=r"dpo\.pairs in training_config\.yaml names no file"):
        collect_pairs(small_project, configured(small_project, sources=["pairs"]))


def test_a_prompt_and_its_translation_are_on_one_side(small_project: Project):
    pairs = collect_pairs(small_project, configured(small_project))
    apart = split_by_prompt([pair.prompt_id for pair in pairs], 0.3, 1)
    assert {pair.language for pair in pairs if pair.prompt_id in apart} == {"pt", "en"}
    with pytest.raises(DataError, match="at least two prompts"):
        split_by_prompt(["one", "one"], 0.3, 1)


def test_what_is_too_long_is_cut_alike_or_dropped(small_project: Project, tiny_tokenizer_folder: Path):
    pairs = collect_pairs(small_project, configured(small_project, max_planted=20))
    encoder = open_encoder(tiny_tokenizer_folder)
    fitted = fit_pairs(pairs, encoder, 600)
    assert 0 < len(fitted) < len(pairs)
    for text, tokens in fitted:
        assert max(len(tokens.chosen.input_ids), len(tokens.rejected.input_ids)) <= 600
        assert text.better.split() != text.worse.split()


# --- the whole way


@pytest.mark.slow
@pytest.mark.parametrize("method", ["probe", "lora"])
def test_from_pairs_to_a_seat(
    small_project: Project,
    tiny_model: Path,
    tmp_path: Path,
    quiet_cache: Path,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from noesis.pipeline.train_judge.train import train_judge
    from noesis.tribunal.calibration.calibrate import calibrate
    from noesis.tribunal.panel import take_seat

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    settings = {"method": method, "max_planted": 8, "max_tokens": 1500, "epochs": 1, "held_out": 0.3}
    config = configured(small_project, **settings).with_settings(training={"model": str(base)})
    record = train_judge(small_project, config, tmp_path / "work")
    assert record["held_out"]["pairs"] > 0
    assert record["trained_on"]["by_source"]["planted"] > 0
    judge = tmp_path / "judge"
    shutil.copytree(tmp_path / "work" / "judge", judge)
    assert sum(file.stat().st_size for file in judge.iterdir()) < 12e6
    assert "work/judge is made already" not in capsys.readouterr().out
    assert train_judge(small_project, config, tmp_path / "work")["files"] == record["files"]
    assert "is made already" in capsys.readouterr().out
    other = config.with_settings(training={"seed": 7})
    with pytest.raises(RunError, match=r"with another pairs, seed|with another .*seed"):
        train_judge(small_project, other, tmp_path / "work")

    section, spec = config.training.tribunal, f"reward:{judge}"
    with pytest.raises(UsageError, match="calibrate it on the dev half first"):
        calibrate(small_project, section, [spec], "locked", count=4)
    (dev,) = calibrate(small_project, section, [spec], "dev")
    assert dev.ties == 0
    assert dev.details["abstention"]["count"] == 0
    assert dev.details["note"].endswith("judge trained on the same examples")
    assert dev.baselines["words"]["pairs"] == dev.pairs
    assert dev.fit == (dev.interval_95[0] > max(0.5, *(found["accuracy"] for found in dev.baselines.values())))
    stored = load_calibration(small_project.calibrations, dev.identity, read_rubrics(small_project), parts=("dev",))
    assert stored is not None
    assert stored.details["scale"] == dev.details["scale"]
    (locked,) = calibrate(small_project, section, [spec], "locked", count=4)
    assert locked.details["scale"] == dev.details["scale"]  # not fitted anew

    seat = section.reward.model_copy(update={"path": str(judge), "role": "seat"})
    assert take_seat(small_project, seat, read_rubrics(small_project)) is None
    assert "only on the dev half" in capsys.readouterr().out  # it has no say before the locked half


@pytest.mark.slow
def test_a_cap_stops_it_and_a_higher_one_goes_on(
    small_project: Project, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from noesis.pipeline.train_judge.train import train_judge
    from noesis.training.reward import states

    config = configured(small_project, max_planted=8, max_tokens=1500, held_out=0.3).with_settings(
        training={"model": str(tiny_model)}
    )
    monkeypatch.setattr(states, "PART", 4)
    capped = config.with_settings(training={"budget": config.training.budget.model_copy(update={"max_minutes": 1e-9})})
    work = tmp_path / "work"
    with pytest.raises(CapError, match="what was computed is kept"):
        train_judge(small_project, capped, work)
    ledger = [json.loads(line) for line in (work / "ledger.jsonl").read_text().splitlines()]
    assert [entry["ended"] for entry in ledger] == ["capped"]
    train_judge(small_project, config, work)
    first = sorted((work / "states").iterdir())[0].stat().st_mtime_ns
    shutil.rmtree(work / "judge")
    train_judge(small_project, config, work)
    assert sorted((work / "states").iterdir())[0].stat().st_mtime_ns == first  # computed once


def test_a_folder_with_something_else_is_left_alone(small_project: Project, tmp_path: Path):
    from noesis.core.config import BudgetSection
    from noesis.pipeline.train_judge.folder import open_work

    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"holds letter\.txt"), open_work(tmp_path, {}, BudgetSection(), 0.0):
        pass
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["letter.txt"]
