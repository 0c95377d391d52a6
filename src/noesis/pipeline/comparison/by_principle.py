"""`noesis constitution diff --runs A B`: two tuned models, principle by principle, by their Tribunal's verdicts.

Each item of a rubric names the principles that it tests; an answer's score on a principle is the mean of its items'
points (0..1). Runs are compared on the prompts that both were judged on, by the same judges with the same rubrics;
prompts of a pair are one cluster.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import command
from noesis.core.errors import RunError
from noesis.core.i18n import _
from noesis.core.jsonl import MAX_RUN_FILE, jsonl_files, read_objects
from noesis.core.project import Project
from noesis.run.directory import load_run
from noesis.tribunal.rubric import JUDGES, RubricSet, load_rubrics
from noesis.tribunal.statistics import Interval, bootstrap, clustered, sign_flip

Points = dict[str, dict[str, list[float]]]  # principle → prompt → points of its items, 0..1, over samples and judges


@dataclass(frozen=True)
class PrincipleComparison:
    """Two runs on one principle.

    prompts: that both were judged on
    a, b: mean points of each run, 0..1; difference: b minus a
    interval_95: of the difference; None where all prompts are one cluster
    """

    prompts: int
    a: float
    b: float
    difference: float
    interval_95: Interval | None
    p: float


@dataclass(frozen=True)
class RunComparison:
    """Two runs compared. judges: those that judged both, with their models."""

    a: str
    b: str
    judges: tuple[str, ...]
    by_principle: dict[str, PrincipleComparison]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_runs(project: Project, a: Path, b: Path) -> RunComparison:
    """Mean of each run and difference B − A with its 95% interval (cluster bootstrap) and p (sign flips), by principle.

    Raises:
        RunError: a run holds no verdicts, or the two were judged by different judges or rubrics.
    """
    tribunal = project.data / "tribunal"
    rubrics = load_rubrics(tribunal / "judges")
    (points_a, judges_a), (points_b, judges_b) = (_points(path, rubrics) for path in (a, b))
    if not judges_a & judges_b:
        raise RunError(
            _(
                "{a} and {b} have no judge with the same rubric in common, so their verdicts can't be compared: "
                "judge both again with one --judge",
                a=a,
                b=b,
            )
        )
    clusters = prompt_clusters(tribunal)
    found: dict[str, PrincipleComparison] = {}
    for principle in sorted(points_a.keys() & points_b.keys()):
        prompts = sorted(points_a[principle].keys() & points_b[principle].keys())
        if prompts:
            side_a, side_b = ([points[principle][p] for p in prompts] for points in (points_a, points_b))
            found[principle] = _figures(side_a, side_b, [clusters.get(p, p) for p in prompts])
    judges = sorted({f"{judge} ({model})" for judge, model, _ in judges_a & judges_b})
    return RunComparison(str(a), str(b), tuple(judges), found)


def _figures(a: list[list[float]], b: list[list[float]], clusters: list[str]) -> PrincipleComparison:
    means = [[sum(points) / len(points) for points in side] for side in (a, b)]
    differences = [y - x for x, y in zip(*means, strict=True)]
    sums, counts = clustered(differences, clusters)
    low, high = bootstrap(sums, counts)
    return PrincipleComparison(
        prompts=len(differences),
        a=round(sum(means[0]) / len(differences), 4),
        b=round(sum(means[1]) / len(differences), 4),
        difference=round(float(sums.sum() / counts.sum()), 4),
        interval_95=(round(low, 4), round(high, 4)) if len(sums) > 1 else None,
        p=round(sign_flip(sums / counts), 4),
    )


def _points(path: Path, rubrics: RubricSet) -> tuple[Points, set[tuple[str, str, str]]]:
    """The tuned model's points, and who gave them: (judge, model, hash of the rubric)."""
    run = load_run(path)
    file = run.tribunal / "verdicts.jsonl"
    if not file.is_file():
        how = command("judge", path, "--judge", "SPEC")
        raise RunError(_("{path} holds no verdicts: have it judged with  {how}", path=path, how=how))
    principles = {(judge, item.id): item.principles for judge in JUDGES for item in rubrics.rubrics[judge].items}
    points: Points = defaultdict(lambda: defaultdict(list))
    judges = set()
    for row in read_objects(file, most=MAX_RUN_FILE):
        prompt, who, _ignored = row["answer"].rsplit("/", 2)
        for verdict in row["verdicts"] if who == "tuned" else ():
            if verdict["status"] == "scored":
                judges.add((verdict["judge"], verdict["model"], verdict["rubric_sha256"]))
                for item in verdict["items"]:
                    for principle in principles.get((verdict["judge"], item["id"]), ()):
                        points[principle][prompt].append(item["score"] / 2)
    return points, judges


def prompt_clusters(tribunal: Path) -> dict[str, str]:
    """The cluster of each prompt that has a partner; only ids are read, so that no locked text is looked at."""
    found = {}
    for file in jsonl_files(tribunal / "prompts"):
        for row in read_objects(file):
            if row.get("pair"):
                found[row["id"]] = min(row["id"], row["pair"])
    return found
