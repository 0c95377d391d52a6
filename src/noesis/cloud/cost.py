"""What a run on Modal costs: quoted by the plan, metered by its ledger (seconds × price), billed by Modal.

`noesis cloud cost` prints all three; the run's summary prints the first two. Page: https://modal.com/docs/guide/billing
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from noesis.core.console import duration
from noesis.core.i18n import _, retold
from noesis.planning.budget import in_reais
from noesis.run.ledger import total
from noesis.run.manifest import Manifest


@dataclass(frozen=True)
class CostRow:
    """One stage: quoted and metered; None where the plan or the ledger does not name it."""

    stage: str
    quoted_usd: float | None
    quoted_seconds: float | None
    metered_usd: float | None
    metered_seconds: float | None

    def to_json(self) -> dict[str, str | float | None]:
        return asdict(self)


@dataclass(frozen=True)
class CostReport:
    """Every stage's cost, and Modal's bill where Modal tells it."""

    rows: list[CostRow]
    billed_usd: float | None
    billed_how: str  # where the bill comes from, or why there is none

    @classmethod
    def of(cls, app: str, manifest: Manifest) -> CostReport:
        """The costs of the run with this manifest; `app` is the name that Modal bills it under."""
        from noesis.cloud.billing import billed

        return cls(cost_rows(manifest), *billed(app, manifest))

    @property
    def quoted_usd(self) -> float:
        return round(sum(row.quoted_usd or 0.0 for row in self.rows), 6)

    @property
    def metered_usd(self) -> float:
        return round(sum(row.metered_usd or 0.0 for row in self.rows), 6)

    @property
    def unbilled_usd(self) -> float:
        """What was metered and is not in the bill, if there is one."""
        return 0.0 if self.billed_usd is None else round(max(self.metered_usd - self.billed_usd, 0.0), 6)

    def lines(self, brl_per_usd: float | None = None) -> list[str]:
        """The table of stages; with a rate, the sum in R$ as well."""
        heads = _("quoted"), _("metered")
        lines = [f"  {'':14} {heads[0]:>24}   {heads[1]:>24}"]
        for r in self.rows:
            quoted, metered = (
                _amount(r.quoted_seconds, r.quoted_usd, ""),
                _amount(r.metered_seconds, r.metered_usd, _("not yet")),
            )
            lines.append(f"  {r.stage:14} {quoted:>24}   {metered:>24}")
        sums = f"{_four(self.quoted_usd):>24}   {_four(self.metered_usd):>24}"
        label, reais = _("in all"), in_reais(self.metered_usd, brl_per_usd)
        return [*lines, f"  {label:14} {sums}{reais}"]

    def billing_lines(self) -> list[str]:
        """Modal's bill, what of the metered amount is not in it, and why it may differ."""
        amount = "–" if self.billed_usd is None else _four(self.billed_usd)
        lines = [_("  billed         {amount}: {how}", amount=amount, how=retold(self.billed_how))]
        if self.unbilled_usd:
            lines.append(
                _(
                    "  not billed     {unbilled_usd:.4f} USD of what was metered: an hour that is missing in the "
                    "report yet, or time that Modal does not charge",
                    unbilled_usd=self.unbilled_usd,
                )
            )
        return [
            *lines,
            _(
                "  metered is the time of the calls; Modal also charges for what containers do before and after, and "
                "its report does not know of free credit and storage"
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "stages": [row.to_json() for row in self.rows],
            "quoted_usd": self.quoted_usd,
            "metered_usd": self.metered_usd,
            "billed_usd": self.billed_usd,
            "billed_how": self.billed_how,
            "unbilled_usd": self.unbilled_usd,
        }


def cost_rows(manifest: Manifest) -> list[CostRow]:
    """Each stage of the ledger, then those that only the plan names."""
    plan = manifest.result("plan") or {}
    quoted = {
        str(stage["name"]).split(" and ")[0]: (float(stage["usd"]), stage.get("seconds"))
        for stage in plan.get("stages", [])
    }
    metered = {
        name: total(entry for entry in manifest.ledger if entry.stage == name)
        for name in dict.fromkeys(entry.stage for entry in manifest.ledger)
    }
    absent = (None, None)
    return [
        CostRow(name, *quoted.get(name, absent), *metered.get(name, absent))
        for name in dict.fromkeys([*metered, *quoted])
    ]


def metered_lines(manifest: Manifest, brl_per_usd: float | None = None) -> list[str]:
    """Each stage that has run: time, metered cost, and the quote; then the sum, with a rate in R$ as well."""
    rows = cost_rows(manifest)
    spent = [row for row in rows if row.metered_usd is not None]
    lines = []
    for row in spent:
        quoted = "" if row.quoted_usd is None else _("   quoted {quoted_usd:.2f}", quoted_usd=row.quoted_usd)
        lines.append(
            f"  {row.stage:12} {duration(row.metered_seconds or 0.0):>13}  {_four(row.metered_usd or 0.0):>12}{quoted}"
        )
    seconds, usd = sum(row.metered_seconds or 0.0 for row in spent), sum(row.metered_usd or 0.0 for row in spent)
    quoted_usd = sum(row.quoted_usd or 0.0 for row in rows)
    return [
        *lines,
        _(
            "  {label:12} {seconds:>13}  {usd:8.4f} USD   quoted {quoted_usd:.2f}",
            label=_("in all"),
            seconds=duration(seconds),
            usd=usd,
            quoted_usd=quoted_usd,
        )
        + in_reais(usd, brl_per_usd),
    ]


def _amount(seconds: float | None, usd: float | None, absent: str) -> str:
    return absent if usd is None else f"{duration(seconds or 0.0)} {_four(usd):>13}"


def _four(usd: float) -> str:
    return _("{usd:.4f} USD", usd=usd)
