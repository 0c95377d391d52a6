"""Which seed's adapter is used, and whether the seeds say the same; a run of several seeds from its start to its end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from noesis.core.errors import RunError
from noesis.pipeline.results import Choice, EpochFigures
from noesis.pipeline.stages.choose import spread_lines
from noesis.pipeline.stages.seed_rule import choose_seed, disagreement

IDS = [f"e{i}" for i in range(13)]


def scores(loss: float, margin: float = 0.0, noise: float = 0.0) -> dict[str, list[tuple[float, int]]]:
    """Of 13 examples, 100 tokens an answer; loss of the revised ones and by how much the initial ones are less likely."""
    draw = random.Random(0)
    losses = [loss + draw.uniform(-0.2, 0.2) for _ in IDS]
    margins = [margin + draw.uniform(-noise, noise) for _ in IDS]
    revised = [(-100 * x, 100) for x in losses]
    return {"revised": revised, "initial": [(-100 * (x + m), 100) for x, m in zip(losses, margins, strict=True)]}


def chosen(*seeds: str) -> dict[str, tuple[str, str]]:
    return {seed: ("epoch_2" if seed == seeds[0] else f"seed_{seed}_epoch_2", "why") for seed in seeds}


def test_the_first_seed_is_used_unless_another_loses_less_beyond_chance():
    alike = {"epoch_2": scores(2.001), "seed_43_epoch_2": scores(2.0), "seed_44_epoch_2": scores(2.4)}
    alike["epoch_2"]["revised"][0] = (-190.0, 100)
    adapter, reason = choose_seed(IDS, alike, chosen("42", "43", "44"))
    assert adapter == "epoch_2"
    assert "of 3 seeds 42: the held-out loss of seed 44 is 0." in reason
    assert "seeds 42, 43 can't be told apart by it: the first of them is used" in reason
    apart = {"epoch_2": scores(2.3), "seed_43_epoch_2": scores(2.0)}
    adapter, reason = choose_seed(IDS, apart, chosen("42", "43"))
    assert adapter == "seed_43_epoch_2"
    assert reason.startswith("of 2 seeds 43: the held-out loss of seed 42 is 0.3000")


def test_seeds_that_disagree_are_said():
    base = scores(2.5, margin=-0.1)
    names = {"42": "a", "43": "b", "44": "c"}
    agree = {name: scores(2.0, margin=0.2) for name in names.values()}
    assert disagreement(IDS, base, agree, names) == ""
    apart = agree | {"b": scores(2.0, margin=-0.1, noise=0.05), "c": scores(2.0, margin=-0.4)}
    said = disagreement(IDS, base, apart, names)
    assert "it rose with 42; it did not change beyond chance with 43; it fell with 44" in said


def test_a_choice_of_seeds_survives_json_and_says_its_spread():
    figures = {
        name: EpochFigures(preferred, 0.1 * preferred, 2.0, 13)
        for name, preferred in (("epoch_0", 4), ("seed_43_epoch_0", 8))
    }
    made = Choice(
        "epoch_0", "why", False, figures, True, {"42": "epoch_0", "43": "seed_43_epoch_0"}, "the seeds disagree"
    )
    stored = json.loads(json.dumps(made.to_json()))
    assert Choice.from_json(stored) == made
    assert stored["spread"]["preferred"] == {"mean": 6.0, "sd": 2.82843, "lowest": 4.0, "highest": 8.0}
    assert spread_lines(made) == [
        "2 seeds, mean ± SD between them: prefers 6.0 ± 2.8 of 13, margin +0.6000 ± 0.2828, held-out loss 2.0000 ± 0.0000",
        "the seeds disagree",
    ]
    with pytest.raises(ValueError, match="a seed's epoch is none of those that were scored"):
        Choice.from_json(stored | {"seeds": {"42": "../epoch_0"}})


@pytest.mark.slow
def test_a_run_of_two_seeds_is_chosen_judged_shown_and_verified(tiny_model: Path, tmp_path: Path):
    from helpers.project import ROOT
    from helpers.tiny_runs import OVERRIDES
    from noesis.core.config import load_config
    from noesis.core.files import write_json
    from noesis.core.project import Project
    from noesis.pipeline import registry
    from noesis.pipeline.start_run import from_sources, start_run
    from noesis.pipeline.verify.check_run import verify

    found = Project(ROOT)
    more = {"training.model": str(tiny_model), "training.data.language": "en", "training.seeds": 2}
    config = load_config(found, OVERRIDES | more | {"training.strength.fixed": 1.0})
    s = start_run(found, config, tmp_path / "run", from_sources(found, config))
    stages = (*(name for name in registry.training_stages()), "judge", "report")
    registry.run_all(s, registry.PipelineOptions(found), stages=stages)
    assert set(s.run.result("choose")["epochs"]) == {"epoch_0", "seed_43_epoch_0"}
    assert set(s.run.result("train")["seeds"]) == {"43"}
    assert set(s.run.result("judge")["kept"]["by_seed"]) == {"43"}
    page = s.run.report.read_text(encoding="utf-8")
    assert "2 seeds, mean ± SD between them" in page
    assert "Between seeds: lost" in page
    assert not [finding for finding in verify(s.run, found) if finding.wrong]
    manifest = json.loads((s.run.path / "manifest.json").read_text())
    manifest["stages"]["choose"]["result"]["adapter"] = "seed_44_epoch_0"
    write_json(s.run.path / "manifest.json", manifest)
    from noesis.run.directory import load_run

    with pytest.raises(RunError, match="seed_44_epoch_0.*not among the adapters that training left here"):
        load_run(s.run.path).trained_adapter()
