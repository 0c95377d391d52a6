"""`noesis constitution check`: is the document consistent, and does each principle reach data and judgement?

What tests a principle is written once, with the judges' items (`principles:` in data/tribunal/judges/*.yaml), and only
derived here. Mistakes (exit code 1) are in the document itself, an item that tests nothing or an unknown principle, and
an example that names one. Gaps are listed and are no mistake: a principle without example, item, prompt or request. Of
the Tribunal's prompts only the open half is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, Mistake, read_constitution
from noesis.core.i18n import _
from noesis.core.jsonl import iter_intact_objects, jsonl_files
from noesis.core.project import Project
from noesis.core.yaml_file import line_of
from noesis.tribunal.rubric import JUDGES, RubricItem, RubricSet, load_rubrics
from noesis.tribunal.suite import EvalSample, read_suite


@dataclass
class Cover:
    """What one principle reaches.

    examples: ids of the hand-written examples that name it, by language
    items: judges' items that test it, `veritas.acerto`
    prompts: ids of the Tribunal's open prompts to whose answers one of those items is applied
    """

    principle: str
    value: str
    examples: dict[str, list[str]] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


@dataclass
class Coverage:
    """What `check_coverage` found. judges, suite: whether the project has any."""

    constitution: Constitution | None
    covers: list[Cover] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    judges: bool = False
    suite: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "mistakes": [str(m) for m in self.mistakes],
            "principles": [
                {"id": c.principle, "value": c.value, "items": c.items, "prompts": len(c.prompts), "gaps": c.gaps}
                | {"examples": {language: len(ids) for language, ids in c.examples.items()}}
                for c in self.covers
            ],
        }


def check_coverage(project: Project) -> Coverage:
    """Compare the constitution with everything that refers to it.

    Raises:
        ConstitutionError: the document is missing or not YAML.
        ConfigError, DataError: a judge or a prompt can't be read.
    """
    constitution, mistakes = read_constitution(project.constitution)
    if constitution is None:
        return Coverage(None, mistakes=mistakes)
    found = Coverage(constitution)
    tribunal = project.data / "tribunal"
    found.judges = (tribunal / "judges").is_dir()
    found.suite = bool(jsonl_files(tribunal / "prompts"))
    rubrics = load_rubrics(tribunal / "judges") if found.judges else None
    suite = read_suite(tribunal, "dev") if found.suite else []
    found.covers = covers(constitution, rubrics, suite)
    if rubrics is not None:
        found.mistakes += items_mistakes(constitution, rubrics, tribunal / "judges")
    _count_examples(project, constitution, found)
    for cover in found.covers:
        cover.gaps = list(_gaps(cover, constitution, found))
    return found


def covers(constitution: Constitution, rubrics: RubricSet | None, suite: Sequence[EvalSample]) -> list[Cover]:
    """Each principle with the items that test it and the prompts that they are put to; examples are not counted."""
    found = []
    for principle in constitution.principles:
        cover = Cover(principle.id, principle.value)
        items = items_of(rubrics, principle.id) if rubrics else []
        cover.items = [name for name, _ in items]
        cover.prompts = [
            p.id for p in suite if not p.check and any(item.applies_to(p.model_dump(mode="json")) for _, item in items)
        ]
        found.append(cover)
    return found


def items_of(rubrics: RubricSet, principle: str) -> list[tuple[str, RubricItem]]:
    """(judge.item, item) of the items that test a principle."""
    return [
        (f"{judge}.{item.id}", item)
        for judge in JUDGES
        for item in rubrics.rubrics[judge].items
        if principle in item.principles
    ]


def items_mistakes(constitution: Constitution, rubrics: RubricSet, folder: Path) -> list[Mistake]:
    """Items that name no principle, or one that the constitution does not have."""
    found = []
    for judge in JUDGES:
        file = folder / f"{judge}.yaml"
        for i, item in enumerate(rubrics.rubrics[judge].items):
            if not item.principles:
                found.append(
                    Mistake(
                        file,
                        line_of(file, ("items", i)),
                        _(
                            "the item {id!r} tests nothing: name the principles that it tests (principles: […])",
                            id=item.id,
                        ),
                    )
                )
            for k, name in enumerate(item.principles):
                if name not in constitution.principle_ids:
                    line = line_of(file, ("items", i, "principles", k))
                    found.append(
                        Mistake(
                            file,
                            line,
                            _(
                                "the item {id!r} tests {name!r}, which the constitution does not have",
                                id=item.id,
                                name=name,
                            ),
                        )
                    )
    return found


def _count_examples(project: Project, constitution: Constitution, found: Coverage) -> None:
    by_id = {cover.principle: cover for cover in found.covers}
    for language in constitution.languages:
        (folder,) = project.sources(language)
        for cover in found.covers:
            cover.examples[language] = []
        for file in jsonl_files(folder):
            for number, row in iter_intact_objects(file):  # noesis data validate reports the other lines
                for name in row.get("principles") or ():
                    if name in by_id:
                        by_id[name].examples[language].append(str(row.get("id")))
                    else:
                        found.mistakes.append(
                            Mistake(
                                file,
                                number,
                                _(
                                    "{id} names the principle {name!r}, which the constitution does not have",
                                    id=row.get("id"),
                                    name=name,
                                ),
                            )
                        )


def _gaps(cover: Cover, constitution: Constitution, found: Coverage) -> Any:
    for language, ids in cover.examples.items():
        if not ids:
            yield _("no example in {language} names it", language=language)
    if not cover.items:
        yield _("no judge's item tests it") if found.judges else _("no judges here")
    elif not cover.prompts:
        yield _("no prompt puts an item of it to an answer") if found.suite else _("no prompts here")
    principle = constitution.principle(cover.principle)
    for name in ("critique", "revision"):
        if getattr(principle, name) is None:
            yield _("no {name} request: generic wording is used instead", name=name)
