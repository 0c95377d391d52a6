"""What `noesis influence` found, as typed values: for each training example, how it lies to the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from noesis.core.files import sha256_file
from noesis.core.jsonl import read_json_file
from noesis.core.typed import require_types
from noesis.run.directory import Run

FOLDER, SUMMARY = "influence", "summary.json"
QUOTED = 100  # characters of a prompt
MOST = 10  # examples at each end of a table


@dataclass(frozen=True)
class ExampleInfluence:
    """One training example.

    margin: cosine of its step with the gradient of the held-out pairs' mean margin, -1 to 1, mean over the epochs;
        above 0: it teaches to prefer the revised answers
    kept: the same for the small tasks that were lost: above 0, it keeps them, below 0, it breaks them; None: none was
    """

    id: str
    language: str
    prompt: str
    margin: float
    kept: float | None = None


@dataclass(frozen=True)
class Influence:
    """All of them.

    adapters: at whose weights gradients were taken
    pairs, lost: held-out pairs, and small tasks that were lost and are compared by likelihood
    """

    adapters: tuple[str, ...]
    pairs: int
    lost: int
    examples: tuple[ExampleInfluence, ...]

    def helpful(self) -> Sequence[ExampleInfluence]:
        """Those that raise the margin most, the first the most; none that lowers it."""
        return [e for e in sorted(self.examples, key=lambda e: -e.margin) if e.margin > 0][:MOST]

    def harmful(self) -> Sequence[ExampleInfluence]:
        """Those that lower the margin, or raise it least; the first the worst."""
        helpful = {(e.id, e.language) for e in self.helpful()}
        return [e for e in sorted(self.examples, key=lambda e: e.margin) if (e.id, e.language) not in helpful][:MOST]

    def breaking(self) -> Sequence[ExampleInfluence]:
        """Those that break most of what was lost, the first the most; empty where nothing was."""
        known = [(e.kept, e) for e in self.examples if e.kept is not None and e.kept < 0]
        return [e for _, e in sorted(known, key=lambda pair: pair[0])][:MOST]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Influence:
        examples = tuple(ExampleInfluence(**example) for example in stored["examples"])
        found = cls(tuple(stored["adapters"]), stored["pairs"], stored["lost"], examples)
        require_types([found])
        return found


def stored_influence(run: Run) -> Influence | None:
    """What was found in a run, if the file is the one that was written and the adapters are still those."""
    result, file = run.result("influence"), run.path / FOLDER / SUMMARY
    if result is None or not file.is_file() or sha256_file(file) != result.get("sha256"):
        return None
    try:
        return Influence.from_json(read_json_file(file, constants=False))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
