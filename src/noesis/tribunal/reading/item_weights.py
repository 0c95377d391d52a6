"""What each item of a rubric is worth, learnt on the dev half by `noesis tribunal weigh` (`calibration/weigh.py`).

One number an item, held near 1 by L2; the file also says how the weights did on attacks that they were not learnt on.
They belong to one judge and one version of the rubrics, and count only with `tribunal: item_weights: true`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.core.console import command
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_json, write_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file

HEAVIEST = 10.0  # a weight that is believed


@dataclass(frozen=True)
class ItemWeights:
    """Weights by judge and item (`veritas.acerto`), and how they do on the pairs of the dev half.

    identity: of the judge that was read with equal weights
    equal, learnt, left_out: pairs right with equal weights, with these on what they were learnt on, and with weights
    learnt without the attack that a pair is of
    """

    judge: str
    identity: str
    rubrics_sha256: str
    benchmark_sha256: str
    l2: float
    weights: dict[str, float]
    pairs: int
    equal: int
    learnt: int
    left_out: int
    left_out_by_attack: dict[str, tuple[int, int]]
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"made_by": "noesis tribunal weigh", **asdict(self)}


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True)

    weights: dict[str, Annotated[float, Field(ge=0, le=HEAVIEST, allow_inf_nan=False)]]


def save_weights(folder: Path, found: ItemWeights) -> Path:
    file = folder / _name(found.identity, found.rubrics_sha256)
    write_json(file, found.to_json())
    return file


def load_weights(folder: Path, identity: str, rubrics_sha256: str) -> dict[str, float]:
    """The weights of the judge that has this identity with equal weights.

    Raises:
        UsageError: none were learnt. DataError: the file does not hold weights.
    """
    file = folder / _name(identity, rubrics_sha256)
    if not file.is_file():
        raise UsageError(
            _(
                "tribunal: item_weights is true, but no weights were learnt for this judge with these rubrics: run  "
                "{command}  or set it to false",
                command=command("tribunal", "weigh", "--judge", "SPEC"),
            )
        )
    try:
        return _Stored.model_validate(read_json_file(file)).weights
    except (ValueError, ValidationError):
        raise DataError(
            _(
                "{file} does not hold item weights between 0 and {heaviest:g}: learn them again with  {command}",
                file=file,
                heaviest=HEAVIEST,
                command=command("tribunal", "weigh", "--judge", "SPEC"),
            )
        ) from None


def _name(identity: str, rubrics_sha256: str) -> str:
    return f"weights-{sha256_json([identity, rubrics_sha256])[:16]}.json"
