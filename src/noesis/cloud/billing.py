"""What Modal itself says of money: its rates before a run, and its bill afterwards, found by the tag of the run's apps.

Both come with some plans only (Team, Enterprise). Where Modal refuses, the dated price list and the ledger stand, and
that is said. Page: https://modal.com/docs/guide/billing
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import modal

from noesis.cloud.patience import patiently
from noesis.core.errors import RunError
from noesis.core.i18n import N_
from noesis.planning.gpus import CPU, MEMORY, gpus, prices
from noesis.run.manifest import Manifest

TAG = "noesis-run"  # of every app of a run
RATES_S = 15.0  # longest wait for the rates: there is a price list
PLAUSIBLE = 2.0  # a rate that differs from the dated price by a larger factor is of something else, or in another unit
SECONDS_OF = (1.0, 3600.0)  # rates are in USD a second, or an hour


def tags_of(output_name: str) -> dict[str, str]:
    """The tags of a run's apps: letters, digits, `-`, `.`, `_`, and at most 63 of them, as Modal wants it."""
    return {TAG: re.sub(r"[^A-Za-z0-9._-]", "-", output_name)[:63]}


class CurrentPrices(NamedTuple):
    """USD a second of what Modal's rates name and the price list knows; `how`: why there are none, or whence."""

    usd_per_s: dict[str, float] | None
    how: str


def current_prices() -> CurrentPrices:
    """Modal's own rates, where it tells them."""
    try:
        rates = patiently(
            N_("tell its rates"),
            lambda: {name: float(rate) for name, rate in modal.Workspace.from_context().billing.rates().items()},
            patience_s=RATES_S,
        )
    except (modal.exception.Error, RunError) as error:
        return CurrentPrices(
            None,
            N_(
                "prices of {date}: Modal does not tell its rates here ({brief})",
                date=prices().date,
                brief=_brief(error),
            ),
        )
    found = recognised(rates)
    if not found:
        return CurrentPrices(
            None, N_("prices of {date}: Modal tells no rate of a name and size known here", date=prices().date)
        )
    return CurrentPrices(
        found,
        N_("{found} prices are Modal's rates of today, the others of {date}", found=len(found), date=prices().date),
    )


def recognised(rates: Mapping[str, float]) -> dict[str, float]:
    """The rates that the price list has too, in USD a second.

    Their names and units are not documented: a name must hold the words of the price's, and nothing is taken whose
    size is not the dated price's.
    """
    dated = {name: gpu.usd_per_s for name, gpu in gpus().items() if gpu.usd_per_s}
    dated |= {CPU: prices().cpu_core_per_s, MEMORY: prices().memory_gib_per_s}
    found = {}
    for name, usd in dated.items():
        words = {CPU: {"CPU"}, MEMORY: {"MEMORY"}}.get(name, _words(name))
        fitting = [
            rate / unit
            for key, rate in sorted(rates.items(), key=lambda item: len(_words(item[0])))
            for unit in SECONDS_OF
            if words <= _words(key) and 1 / PLAUSIBLE <= rate / unit / usd <= PLAUSIBLE
        ]
        if fitting:
            found[name] = fitting[0]
    return found


def _words(name: str) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", name.upper()))


def billed(app: str, manifest: Manifest) -> tuple[float | None, str]:
    """USD that Modal billed for the run, or None; and how that is known.

    Args:
        app: its name: the bill of apps without the run's tag is found by it.
    """
    entries = [(datetime.fromisoformat(e.started).astimezone(UTC), e.seconds) for e in manifest.ledger if e.started]
    if not entries:
        return None, N_("nothing was started yet")
    first = _hour(min(started for started, _ in entries))
    last = _hour(max(started + timedelta(seconds=seconds) for started, seconds in entries)) + timedelta(hours=1)
    try:
        rows = modal.Workspace.from_context().billing.report(start=first, end=last, resolution="h", tag_names=[TAG])
    except modal.exception.Error as error:
        return None, N_("Modal's billing report is not available here ({brief})", brief=_brief(error))
    tag = tags_of(manifest.output_name)[TAG]
    own = [row for row in rows if row.tags.get(TAG) == tag]
    whose = N_("the apps with the tag {tag}={run}", tag=TAG, run=tag)
    if not own:
        own = [row for row in rows if row.description in (app, f"{app}-judge") and TAG not in row.tags]
        whose = N_("all runs of the app {app}, none of which has a tag", app=app)
    if not own:
        return None, N_("Modal's billing report has no row of this run: it comes some hours late")
    parts: Counter[str] = Counter()
    for row in own:
        parts.update({name: float(usd) for name, usd in row.cost_by_resource.items()})  # type: ignore[dict-item]
    shares = ", ".join(f"{name} {usd:.4f}" for name, usd in parts.most_common())
    how = N_(
        "by Modal for {whose}, {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, whole hours only",
        whose=whose,
        first=first,
        last=last,
    )
    return float(sum(row.cost for row in own)), f"{how} ({shares})" if shares else how


def _hour(time: datetime) -> datetime:
    """The start of that UTC hour, without a time zone, as Modal's API wants it."""
    return time.replace(minute=0, second=0, microsecond=0, tzinfo=None)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
