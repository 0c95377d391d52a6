"""One process of torchrun: its part of a training job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.errors import CapError, NoesisError
from noesis.llm.token_rows import TokenRow
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan


def work(job: Path) -> None:
    """One process's part."""
    from noesis.training.trainer import train

    raw = json.loads(job.read_text(encoding="utf-8"))
    answer = Path(raw["answer"])
    try:
        result = train(
            Path(raw["folder"]),
            [TokenRow(**row) for row in raw["rows"]],
            Config.model_validate(raw["config"]),
            Plan.from_json(raw["plan"]),
            Device.from_json(raw["device"]),
            checkpoints=Path(raw["checkpoints"]),
            metrics=Path(raw["metrics"]),
            budget=Budget.from_json(raw["budget"]) if raw["budget"] else None,
            parent=Path(raw["parent"]) if raw["parent"] else None,
        )
    except NoesisError as error:
        answer.write_text(json.dumps({"error": str(error), "capped": isinstance(error, CapError)}), encoding="utf-8")
        raise SystemExit(1) from None
    if os.environ["RANK"] == "0":
        answer.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
