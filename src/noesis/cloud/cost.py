"""`noesis cloud cost`: what the run has cost so far, by its own ledger and by Modal's bill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from noesis.cloud.run_summary import by_stage


def billed(app: str, manifest: dict[str, Any]) -> tuple[float | None, str]:
    """(USD that Modal billed for the app on the days of the run, or None; in words how that came)."""
    import modal

    starts = sorted(str(entry["started"]) for entry in manifest.get("ledger", []) if entry.get("started"))
    if not starts:
        return None, "nothing was started yet"
    first = (
        datetime.fromisoformat(starts[0])
        .astimezone(UTC)
        .replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    )
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    try:
        rows = modal.Workspace.from_context().billing.report(start=first, end=tomorrow, resolution="d")
    except modal.exception.Error as error:
        return None, f"modal billing report does not answer here ({' '.join(str(error).split())[:120]})"
    own = [row for row in rows if row.description == app]
    return float(
        sum(row.cost for row in own)
    ), f"by Modal for all runs of the app {app} since {first:%Y-%m-%d}; whole days only, so today's may be missing"


def costs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each stage: quoted, and metered as seconds times price."""
    quoted = {
        s["name"].split(" and ")[0]: s
        for s in ((manifest["stages"].get("plan", {}).get("result")) or {}).get("stages", [])
    }
    metered = by_stage(manifest)
    names = [*dict.fromkeys([*metered, *quoted])]
    return [
        {
            "stage": name,
            "quoted_usd": quoted[name]["usd"] if name in quoted else None,
            "quoted_seconds": quoted[name]["seconds"] if name in quoted else None,
            "metered_usd": round(metered[name][0], 6) if name in metered else None,
            "metered_seconds": round(metered[name][1], 2) if name in metered else None,
        }
        for name in names
    ]
