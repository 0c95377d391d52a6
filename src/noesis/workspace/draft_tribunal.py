"""`noesis constitution draft`: judges' rubrics and questions, drafted from the project's constitution, to be edited.

Each of the three judges gets the values that name it and an item for each of their principles; a value that names none
goes to the one with the fewest. The questions are general ones about the domain, and a start only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution, Value, load_constitution
from noesis.core.errors import UsageError
from noesis.core.files import write_jsonl, write_text
from noesis.core.i18n import _
from noesis.core.machine.package_files import package_files
from noesis.core.project import Project
from noesis.core.yaml_file import read_yaml, yaml_text
from noesis.workspace.starter import Starter, filled, read_starter

JUDGES = {"veritas": ("Veritas", 40), "sophia": ("Sophia", 30), "dike": ("Dikē", 30)}
QUESTIONS = "prompts/questions.jsonl"


def draft_tribunal(project: Project, domain: str, *, again: bool = False) -> list[Path]:
    """Write `data/tribunal/judges/*.yaml` and the questions, and return the files.

    Args:
        domain: what the assistant is for, as it stands in a sentence.
        again: replace what is there.

    Raises:
        UsageError: there are files already. ConstitutionError: the constitution is wrong.
    """
    constitution = load_constitution(project.constitution)
    texts = {code: read_starter(code) for code in constitution.languages}
    files = {f"judges/{name}.yaml": _rubric(name, constitution, texts, domain) for name in JUDGES}
    files["judges/prompt.yaml"] = _prompt(constitution)
    targets = [project.tribunal / name for name in (*files, QUESTIONS)]
    if not again and (there := [file for file in targets if file.exists()]):
        raise UsageError(
            _(
                "{there} is there already: --again replaces all {targets} files of the draft",
                there=there[0],
                targets=len(targets),
            )
        )
    first = next(iter(texts.values()))
    for name, content in files.items():
        write_text(project.tribunal / name, f"# {first.comment}\n" + yaml_text(content))
    write_jsonl(project.tribunal / QUESTIONS, _questions(constitution, texts, domain))
    return targets


def _rubric(judge: str, constitution: Constitution, texts: dict[str, Starter], domain: str) -> dict[str, Any]:
    mine = [value for value in constitution.values if _judge_of(value, constitution) == judge]
    mine = mine or list(constitution.values)  # a judge of nothing would say nothing: it judges all
    principles = [p for p in constitution.principles if p.value in {value.id for value in mine}]

    def system(code: str, starter: Starter) -> Any:
        values = "; ".join(f"{value[code].name} ({value[code].text})" for value in mine)
        return filled(starter.judge, {"name": constitution.name, "domain": domain, "values": values})

    name, weight = JUDGES[judge]
    return {
        "version": "1",
        "id": judge,
        "name": name,
        "weight_note": f"{weight} of 100",
        "system": {code: system(code, starter) for code, starter in texts.items()},
        "items": [
            {
                "id": principle.id.replace("-", "_")[:40],
                **{code: filled(s.item, {"principle": principle[code]}) for code, s in texts.items()},
                "anchors": {n: {code: s.anchors[n] for code, s in texts.items()} for n in range(3)},
                "span": "optional",
                "applies": "always",
                "principles": [principle.id],
            }
            for principle in principles[:10]
        ],
    }


def _judge_of(value: Value, constitution: Constitution) -> str:
    """The judge that a value names, or the one with the fewest values that name one; by the values' order."""
    seats = dict.fromkeys(JUDGES, 0)
    for each in constitution.values:
        judge: str = each.judge or min(seats, key=lambda name: seats[name])
        seats[judge] += 1
        if each.id == value.id:
            return judge
    raise AssertionError(value.id)


def _prompt(constitution: Constitution) -> dict[str, Any]:
    """How judges are asked: the wording that Noesis comes with, in English for languages that it lacks."""
    wording = read_yaml(package_files() / "data" / "tribunal" / "judges" / "prompt.yaml")
    return {"version": "1", **{code: wording.get(code, wording["en"]) for code in constitution.languages}}


def _questions(constitution: Constitution, texts: dict[str, Starter], domain: str) -> list[dict[str, Any]]:
    words = {"name": constitution.name, "domain": domain}
    return [
        {
            "id": f"q_{code}_{i:03d}",
            "category": "draft",
            "language": code,
            "split": "dev",
            "kind": "draft",
            "prompt": filled(question, words),
        }
        for code, starter in texts.items()
        for i, question in enumerate(starter.suite, 1)
    ]
