"""Write data/croissant.json, the data set's Croissant 1.1 card, from its files: `make docs`; with --check only compare
(a test does).

Croissant (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html) is JSON-LD on schema.org's vocabulary:
which files there are, with their hashes, and how the fields of a record are read from them. Readers ask each file of a
set for each field, so a field that some files do not hold (`turns`, `key`) has a record set of its own, over the files
that do. Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data"
TARGET = DATA / "croissant.json"
JSON_LINES = "application/jsonlines"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
# Name of a field: what it holds. In the order of a record.
FIELDS = {
    "id": "Name of the example; the same in both languages, so unique together with the language.",
    "language": "pt (Brazilian Portuguese) or en (English).",
    "category": "One of the twelve kinds of example, such as maieutica, logical_argument or anti_sycophancy.",
    "prompt": "What the user says last.",
    "turns": "Earlier messages of a conversation of several turns, the user's first, the assistant's last; absent "
    "from most examples.",
    "response_initial": "A plausible weak answer: flattering, shallow, dogmatic, moralising, needlessly refusing or "
    "confidently wrong. Not to be trained on.",
    "critique": "What is wrong with the weak answer, by Veritas (honesty), Sophia (discernment) and Dikē (fairness).",
    "response_revised": "The answer that Noesis would give: what a model is trained to say.",
    "reasoning": "Why the revision is better, in a sentence or two.",
    "values_applied": "The values of the constitution at work: verdade, sabedoria, justica, florescimento, alianca, "
    "humildade.",
    "difficulty": "easy, medium or hard.",
    "principles": "Ids of the principles of data/constitution.yaml that the revision follows.",
    "stance": "How the answer stands towards the user: agree, disagree, uncertain, decline or explore.",
    "key": "For examples whose answer can be checked, what it must say (valid, invalid, the name of a fallacy); "
    "absent from the rest.",
    "sources": "Works that the revised answer mentions, paraphrased.",
}
ARRAYS = {"values_applied", "principles"}
PARTS = {
    "turns": {"role": "user or assistant.", "content": "What was said."},
    "sources": {
        "author": "Who wrote the work.",
        "work": "Its title.",
        "place": "Book, chapter or passage, as exactly as it could be confirmed; may be empty.",
    },
}
# Name of a record set: files, what it holds.
RECORD_SETS = {
    "examples_pt": (
        "training/philosophical/*.jsonl",
        "All examples in Brazilian Portuguese, in which they were written.",
    ),
    "examples_en": ("training/philosophical_en/*.jsonl", "The same examples in English, by id."),
    "train": ("training/exports/train.jsonl", "The Portuguese examples to train on, as exported."),
    "eval": (
        "training/exports/eval.jsonl",
        "The Portuguese examples held out, at least one of each category, as exported.",
    ),
}


def card() -> dict[str, Any]:
    """The whole card, of the files as they lie in data/."""
    files = [file for pattern, _ in RECORD_SETS.values() for file in sorted(DATA.glob(pattern))]
    sets, record_sets = [], []
    for name, (pattern, about) in RECORD_SETS.items():
        held = {file.relative_to(DATA).as_posix(): _fields_in(file) for file in sorted(DATA.glob(pattern))}
        everywhere = [field for field in FIELDS if all(field in fields for fields in held.values())]
        parts = [(name, about, everywhere, list(held))]
        for field in FIELDS:
            some = [file for file, fields in held.items() if field in fields]
            if some and field not in everywhere:
                parts.append(
                    (
                        f"{name}_{field}",
                        f"`{field}` of the examples in {name} that have one, by their id.",
                        ["id", field],
                        some,
                    )
                )
        for part, text, fields, paths in parts:
            origin = {"fileObject": {"@id": paths[0]}}
            if "*" in pattern:
                sets.append(_file_set(part, paths if len(paths) < len(held) else [pattern]))
                origin = {"fileSet": {"@id": sets[-1]["@id"]}}
            record_sets.append(_record_set(part, text, fields, origin))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "noesis-philosophical",
        "description": "Hand-written examples for constitutional fine-tuning: a question, a plausible weak answer, a "
        "critique by three judges, and the answer "
        "that Noesis would give. 124 examples in Brazilian Portuguese and the same 124 in English, in twelve "
        "categories of philosophical conversation.",
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "version": "1.0.0",
        "datePublished": "2026-11-22",
        "inLanguage": ["pt-BR", "en"],
        "keywords": ["philosophy", "instruction tuning", "constitutional AI", "critique and revision", "Portuguese"],
        "creator": {"@type": "sc:Organization", "name": "The Noesis maintainers"},
        "citeAs": "@misc{noesis2026, title={Noesis: philosophical examples with critiques and revisions}, author={The "
        "Noesis maintainers}, year={2026}}",
        "isLiveDataset": False,
        "rai:dataCollection": "Each example was written by hand for its own sake, then read by someone who did not "
        "write it.",
        "rai:dataUseCases": [
            "Supervised fine-tuning on the revised answers",
            "Preference training of revised over weak answers",
            "Studies of critique and revision",
        ],
        "rai:dataLimitations": [
            "Thirteen held-out examples decide little: report intervals.",
            "Telephone numbers of Brazilian public services occur in a few answers; check them before use in another "
            "country.",
        ],
        "distribution": [*map(_file_object, files), *sets],
        "recordSet": record_sets,
    }


def _fields_in(file: Path) -> set[str]:
    """Fields that at least one example of `file` holds."""
    return {field for line in file.read_bytes().splitlines() for field in json.loads(line)}


def _file_object(file: Path) -> dict[str, Any]:
    path = file.relative_to(DATA).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "description": f"{len(file.read_bytes().splitlines())} examples, one JSON object a line, UTF-8.",
        "contentUrl": path,
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": JSON_LINES,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def _file_set(record_set: str, includes: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{record_set}_files",
        "name": f"{record_set}_files",
        "description": "One file a category; each is described above with its hash.",
        "encodingFormat": JSON_LINES,
        "includes": includes if len(includes) > 1 else includes[0],
    }


def _record_set(name: str, about: str, fields: list[str], origin: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": about,
        "key": {"@id": f"{name}/id"},
        "field": [_field(name, field, FIELDS[field], origin) for field in fields],
    }


def _field(record_set: str, name: str, about: str, origin: dict[str, Any]) -> dict[str, Any]:
    """A field read from the key of its name; one of several parts holds a sub-field for each."""
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "description": about}
    source = {**origin, "extract": {"column": name}}
    if name in ARRAYS or name in PARTS:
        field |= {"isArray": True, "arrayShape": "-1"}
    if name not in PARTS:
        return field | {"dataType": "sc:Text", "source": source}
    return field | {
        "subField": [
            {
                "@type": "cr:Field",
                "@id": f"{record_set}/{name}/{part}",
                "name": part,
                "description": text,
                "dataType": "sc:Text",
                "source": {**source, "transform": {"jsonPath": part}},
            }
            for part, text in PARTS[name].items()
        ]
    }


def main() -> int:
    """Write or compare."""
    text = json.dumps(card(), ensure_ascii=False, indent=2) + "\n"
    if "--check" in sys.argv:
        if TARGET.read_text(encoding="utf-8") != text:
            print("data/croissant.json is stale: run  make docs", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
