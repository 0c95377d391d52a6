"""A reward model before the court: its scale, its verdict, its seat and the breaking of ties. No model is loaded."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import noesis.tribunal.calibration.calibrate as calibrate_module
import noesis.tribunal.panel as panel_module
from helpers.project import ROOT
from noesis.core.config import RewardSection, TribunalSection
from noesis.core.errors import ModelError, UsageError
from noesis.core.project import Project
from noesis.llm.clients.protocol import ModelReply, ModelRequest
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import parse_spec
from noesis.tribunal.court import APPROVED, REWARD, UNDECIDED, opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.reward.client import RewardClient
from noesis.tribunal.reward.scale import Scale, fit_scale
from noesis.tribunal.reward.seat import KIN, ONE_NUMBER, RewardSeat, stored_scale
from noesis.tribunal.reward.words import word_presence, word_scorer
from noesis.tribunal.rubric import load_rubrics
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict, verdict_from_json

RUBRICS = load_rubrics(ROOT / "data" / "tribunal" / "judges")


def verdict(judge: str, points: int) -> Verdict:
    items = tuple(ItemScore(f"i{k}", 2 * (k < points), 2 * (k < points), "", False) for k in range(10))
    return Verdict("c", judge, "m", "", items, None, "")


def reward(score: float) -> Verdict:
    return Verdict("c", REWARD, "r", "", (), None, "", scalar=score)


JUDGED = [verdict("veritas", 8), verdict("sophia", 7), verdict("dike", 7)]  # a mean of 0.74
WITHOUT_DIKE = [*JUDGED[:2], Unscored("c", "dike", "m", "", "no reply")]  # 0.53 to 0.83


def section(role: str, weight: float = 0.2) -> TribunalSection:
    return TribunalSection.model_validate({"reward": {"path": "judges/own", "role": role, "weight": weight}})


def test_the_scale_finds_the_logistic_that_rewards_were_drawn_by():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, 20_000)
    good = rng.random(len(x)) < 1 / (1 + np.exp(-(0.7 * x - 2.0)))
    found = fit_scale(x[good].tolist(), x[~good].tolist())
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.offset == pytest.approx(-2.0, abs=0.1)


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20),
    st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20),
)
def test_a_scale_gives_0_to_1_whatever_the_rewards(good: list[float], bad: list[float]):
    found = fit_scale(good, bad)
    for x in (*good, *bad, 1e30, -1e30):
        assert 0 <= found.score(x) <= 1


def test_answers_told_apart_perfectly_give_a_finite_scale():
    found = fit_scale([2.0, 3.0, 4.0], [-2.0, -3.0, -4.0])
    assert math.isfinite(found.slope)
    assert found.score(3.0) > 0.9 > 0.1 > found.score(-3.0)


def test_a_seat_is_a_fourth_score_in_the_mean_and_has_no_floor():
    found = opinion("c", [*JUDGED, reward(0.0)], section("seat"))
    assert found.mean == pytest.approx((0.8 * 0.74, 0.8 * 0.74))
    assert found.reward == (0.0, 0.0)
    assert found.band(section("seat")) == "CONDITIONAL"  # by the mean; a judge at 0 would be REJECTED


def test_a_missing_reward_could_be_anything():
    missing = Unscored("c", REWARD, "r", "", "too long")
    found = opinion("c", [*JUDGED, missing], section("seat"))
    assert found.mean == pytest.approx((0.8 * 0.74, 0.8 * 0.74 + 0.2))
    assert found.reasons == ("reward (r): too long",)


@pytest.mark.parametrize(("score", "band"), [(0.9, APPROVED), (0.1, "REJECTED")])
def test_a_tie_breaker_stands_for_the_absent_verdict(score: float, band: str):
    assert opinion("c", WITHOUT_DIKE, section("off")).band(section("off")) == UNDECIDED
    found = opinion("c", [*WITHOUT_DIKE, reward(score)], section("tie_breaker"))
    assert found.mean == pytest.approx((0.53 + 0.3 * score,) * 2)
    assert found.band(section("tie_breaker")) == band


def test_a_tie_breaker_has_no_say_where_all_judges_spoke():
    with_it = opinion("c", [*JUDGED, reward(0.0)], section("tie_breaker"))
    assert with_it.mean == opinion("c", JUDGED, section("off")).mean


def test_below_quorum_a_tie_breaker_changes_nothing():
    two_absent = [JUDGED[0], Unscored("c", "sophia", "m", "", "-"), Unscored("c", "dike", "m", "", "-")]
    assert opinion("c", [*two_absent, reward(1.0)], section("tie_breaker")).mean is None


def test_a_verdict_of_a_reward_model_is_read_as_it_was_written():
    written = reward(0.25)
    assert verdict_from_json(written.to_json()) == written
    assert "scalar" not in JUDGED[0].to_json()  # the record of other judges is as it was


def test_a_reward_model_is_calibrated_but_not_named_as_a_judge():
    assert parse_spec("reward:judges/own", kinds=("gguf", "reward")).model == "judges/own"
    with pytest.raises(UsageError, match="seat it beside the judges with  tribunal: reward"):
        parse_spec("reward:judges/own")


def test_a_role_without_a_path_is_refused():
    with pytest.raises(ValueError, match=r"tribunal\.reward\.path names no reward model"):
        TribunalSection.model_validate({"reward": {"role": "seat"}})


def test_a_bag_of_words_scores_by_the_words_that_are_there(tmp_path: Path):
    from safetensors.numpy import save_file

    (one,), (other,) = word_presence(["Talvez."]), word_presence(["Certamente."])
    save_file({"weight": (one - other).astype(np.float32)}, tmp_path / "words.safetensors")
    score = word_scorer(tmp_path / "words.safetensors")
    assert score("talvez sim", "veritas") > score("sim", "veritas") > score("certamente sim", "veritas")
    (tmp_path / "words.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is no bag of words"):
        word_scorer(tmp_path / "words.safetensors")


class Fixed(RewardClient):
    """Gives longer answers the higher reward; no model is loaded."""

    def __init__(self, name: str = "fixed") -> None:
        self.name, self.identity, self.kin, self.words = name, f"reward:{name}", True, None
        self.closed = False

    async def ask(self, request: ModelRequest) -> ModelReply:
        answer = request.messages[-1][1]
        return ModelReply("nan" if not answer else repr(float(len(answer))))

    async def close(self) -> None:
        self.closed = True


def test_a_seated_model_judges_each_answer_once_and_says_what_it_is(tmp_path: Path):
    client = Fixed()
    seat = RewardSeat(client, "seat", Scale(1.0, -10.0))
    cases = [JudgeCase(name, "en", (("user", "What is courage?"),), name) for name in ("short", "a longer answer", "")]

    async def run() -> list[list[Verdict | Unscored]]:
        with open_cache(tmp_path / "cache.sqlite") as cache:
            async with JudgePanel(RUBRICS, [], cache, seat=seat) as panel:
                return await panel.judge(cases)

    found = asyncio.run(run())
    assert client.closed
    assert [[v.judge for v in verdicts] for verdicts in found] == [[REWARD]] * 3
    (short,), (longer,), (none,) = found
    assert isinstance(short, Verdict)
    assert isinstance(longer, Verdict)
    assert short.score == pytest.approx(1 / (1 + math.exp(5)))
    assert longer.score == pytest.approx(1 / (1 + math.exp(-5)))
    assert longer.reasoning == f"{ONE_NUMBER}; {KIN}; reward 15.0000"
    assert isinstance(none, Unscored)
    assert none.reason == "its reward is not a finite number"


def test_only_a_fit_model_takes_the_seat(
    small_project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(panel_module, "RewardClient", Fixed)
    monkeypatch.setattr(calibrate_module, "RewardClient", Fixed)
    section = TribunalSection()
    for part in ("dev", "locked"):
        calibrate_module.calibrate(small_project, section, ["reward:fixed"], part)  # type: ignore[arg-type]
    seat = RewardSection(path="fixed", role="tie_breaker")
    assert panel_module.take_seat(small_project, seat, RUBRICS) is None  # length is a baseline
    assert "tribunal.reward has no say: judge not fit (accuracy" in capsys.readouterr().out
    for file in small_project.calibrations.glob("*-locked.json"):
        file.write_text(file.read_text().replace('"fit": false', '"fit": true'))
    taken = panel_module.take_seat(small_project, seat, RUBRICS)
    assert taken is not None
    assert taken.scale == stored_scale(small_project.calibrations, "reward:fixed", RUBRICS)
    assert f"fixed breaks ties beside the judges: {ONE_NUMBER}; {KIN}" in capsys.readouterr().out


def test_a_strangers_run_seats_no_reward_model():
    strangers = TribunalSection(reward=RewardSection(path="someone/model", role="seat"))
    assert strangers.called_as(TribunalSection()).reward.role == "off"
