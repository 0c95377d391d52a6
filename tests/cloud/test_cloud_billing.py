"""Modal's own rates before a run and its bill afterwards, with and without a plan that has them; the quote as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import modal
import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.cloud import billing
from noesis.cloud.billing import TAG, billed, current_prices, recognised, tags_of
from noesis.cloud.cost import CostReport
from noesis.core import console
from noesis.planning.gpus import CPU, MEMORY, gpus, prices, use_prices
from noesis.planning.pricing import JUDGE_MACHINE, usd_for
from noesis.run.manifest import Identity, Manifest
from noesis.run.manifest_file import parse_manifest

APP = "noesis-philosophical-training"
REFUSED = modal.exception.PermissionDeniedError("Billing is available on the Team and Enterprise plans")


class Workspace:
    """What `modal.Workspace.from_context().billing` answers, or raises."""

    def __init__(self, rows: Any = REFUSED, rates: Any = REFUSED) -> None:
        self.rows, self.known, self.asked, self.billing = rows, rates, {}, self

    def report(self, **asked: Any) -> Any:
        self.asked = asked
        return self._answer(self.rows)

    def rates(self) -> Any:
        return self._answer(self.known)

    @staticmethod
    def _answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    found = Workspace()
    monkeypatch.setattr(modal.Workspace, "from_context", lambda: found)
    yield found
    use_prices(None)


def manifest(name: str = "noesis-philosopher-v1") -> Manifest:
    begun = {"started": "2026-11-27T10:50:00+00:00", "usd_per_s": 0.001, "ended": "done"}
    ledger = [
        begun | {"id": "a", "stage": "train", "seconds": 900.0, "usd": 0.9},
        begun | {"id": "b", "stage": "merge", "started": "2026-11-27T11:30:00+00:00", "seconds": 100.0, "usd": 0.1},
    ]
    identity = Identity("c", "d", "k", "someone/else", "r").to_json()
    return parse_manifest({"identity": identity, "output_name": name, "ledger": ledger, "stages": {}})


def row(cost: str, description: str = APP, **tags: str) -> SimpleNamespace:
    return SimpleNamespace(
        description=description, cost=Decimal(cost), cost_by_resource={"L40S": Decimal(cost)}, tags=tags
    )


def test_the_bill_is_that_of_the_run_s_tag_in_its_own_hours(workspace: Workspace) -> None:
    own = tags_of("noesis-philosopher-v1")
    workspace.rows = [row("0.50"), row("0.25", **own), row("0.125", f"{APP}-judge", **own), row("9", **{TAG: "other"})]
    usd, how = billed(APP, manifest())
    assert usd == 0.375
    assert "noesis-run=noesis-philosopher-v1" in how and "L40S 0.3750" in how
    assert workspace.asked["tag_names"] == [TAG] and workspace.asked["resolution"] == "h"
    assert (workspace.asked["start"], workspace.asked["end"]) == (
        datetime(2026, 11, 27, 10),
        datetime(2026, 11, 27, 12),
    )


def test_apps_of_an_older_version_have_no_tag_and_are_found_by_their_name(workspace: Workspace) -> None:
    workspace.rows = [
        row("0.50"),
        row("0.25", f"{APP}-judge"),
        row("9", "another app"),
        row("9", APP, **{TAG: "other"}),
    ]
    usd, how = billed(APP, manifest())
    assert usd == 0.75 and "none of which has a tag" in how


def test_what_was_metered_and_not_billed_is_said(workspace: Workspace) -> None:
    workspace.rows = [row("0.75", **tags_of("noesis-philosopher-v1"))]
    report = CostReport.of(APP, manifest())
    assert (report.metered_usd, report.billed_usd, report.unbilled_usd) == (1.0, 0.75, 0.25)
    assert any("not billed     0.2500 USD" in line for line in report.billing_lines())


@pytest.mark.parametrize(
    ("rows", "why"),
    [(REFUSED, "not available here (Billing is available on the Team"), ([], "no row of this run")],
    ids=["a plan without reports", "no row yet"],
)
def test_where_there_is_no_bill_the_reason_is_said(workspace: Workspace, rows: Any, why: str) -> None:
    workspace.rows = rows
    report = CostReport.of(APP, manifest())
    assert report.billed_usd is None and why in report.billed_how
    assert not any("not billed" in line for line in report.billing_lines())
    assert billed(APP, replace(manifest(), ledger=())) == (None, "nothing was started yet")


def test_a_tag_has_only_what_modal_takes() -> None:
    name = tags_of("My run, äh " + "x" * 80)[TAG]
    assert name.startswith("My-run---h-x") and len(name) == 63
    modal.App("app", tags=tags_of("My run, äh"))  # raises on what it doesn't take


@pytest.mark.parametrize("unit", [1.0, 3600.0], ids=["a second", "an hour"])
def test_rates_that_are_known_by_name_and_size_go_before_the_price_list(workspace: Workspace, unit: float) -> None:
    before, card = prices().date, gpus()["L40S"].usd_per_s
    assert card is not None
    workspace.known = {
        "gpu_l40s": Decimal("0.0006") * int(unit),
        "GPU A100 80GB": Decimal("0.0007") * int(unit),
        "gpu_a10": Decimal(900),  # in a unit that nobody knows
        "cpu": Decimal("0.000014") * int(unit),
        "volume": Decimal("0.09"),
    }
    found, how = current_prices()
    assert found == pytest.approx({"L40S": 0.0006, "A100-80GB": 0.0007, CPU: 0.000014})
    assert how.startswith("3 prices are Modal's rates of today")
    use_prices(found)
    assert gpus()["L40S"].usd_per_s == pytest.approx(0.0006) and gpus()["A10"].usd_per_s == pytest.approx(0.000306)
    assert (prices().source, prices().date == before) == ("Modal's own rates", False)
    assert usd_for(None, 1.0, 0, JUDGE_MACHINE) == pytest.approx(2 * 0.000014 + 32 * prices().memory_gib_per_s)
    use_prices(None)
    assert (gpus()["L40S"].usd_per_s, prices().date) == (card, before)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (REFUSED, "does not tell its rates here"),
        (modal.exception.AuthError("Token missing"), "Token missing"),
        ({"tokens": Decimal(1)}, "no rate of a name and size known here"),
        ({}, "no rate of a name and size known here"),
    ],
    ids=["a plan without rates", "no token", "rates of other things", "none"],
)
def test_without_rates_the_price_list_stands_and_that_is_said(workspace: Workspace, known: Any, why: str) -> None:
    workspace.known = known
    found, how = current_prices()
    assert found is None and why in how and how.startswith(f"prices of {prices().date}")


def test_silence_about_the_rates_is_not_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billing, "RATES_S", 0.2)
    monkeypatch.setattr(workspace, "rates", lambda: __import__("time").sleep(5))
    found, how = current_prices()
    assert found is None and "no answer" in how


def test_a_card_is_not_taken_for_another_of_a_similar_name() -> None:
    rates = {"gpu_a100_80gb": 0.0007, "gpu_l4": 0.0005, "gpu_h100": 0.0011, "gpu_h200": 0.0013, "memory_gib": 2.2e-6}
    assert recognised(rates) == {"A100-80GB": 0.0007, "H100": 0.0011, "H200": 0.0013, MEMORY: 2.2e-6}


def test_the_quote_is_json_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_quiet_stdout", False)  # which the command changes for the whole process
    assert run_command(["cloud", "plan", "--json", "--max-usd", "3", "--project", str(ROOT)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usd"] == pytest.approx(found["plan"]["usd"] + sum(part["usd"] for part in found["besides"]))
    assert found["at_most_usd"] == found["cap_usd"] == 3.0
    assert set(found["worst_usd"]) >= {"prepare", "train", "merge", "orchestrator"}
