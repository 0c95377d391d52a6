"""Croissant 1.1 cards of examples: which files there are, with their hashes, and how a record's fields are read.

JSON-LD on schema.org's vocabulary: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
Readers ask each file of a set for each field, so a field that some files do not hold (`turns`, `key`) has a record set
of its own, over the files that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noesis.core.files import sha256_file
from noesis.core.jsonl import read_objects

JSON_LINES = "application/jsonlines"
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
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
    "language": "Of the example, ISO 639-1.",
    "category": "The kind of example.",
    "prompt": "What the user says last.",
    "turns": "Earlier messages of a conversation of several turns, the user's first, the assistant's last; absent "
    "from most examples.",
    "response_initial": "A plausible weak answer: flattering, shallow, dogmatic, moralising, needlessly refusing or "
    "confidently wrong. Not to be trained on.",
    "critique": "What is wrong with the weak answer.",
    "response_revised": "The better answer: what a model is trained to say.",
    "reasoning": "Why the revision is better, in a sentence or two.",
    "values_applied": "The values of the constitution at work.",
    "difficulty": "easy, medium or hard.",
    "principles": "Ids of the principles of the constitution that the revision follows.",
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


def described(folder: Path, parts: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The keys of a card that tell its files and records.

    Args:
        folder: to which the files' names are relative.
        parts: name of a record set → (a file or a pattern of files of one JSON object a line, what it holds).
    """
    files = [file for pattern, _ in parts.values() for file in sorted(folder.glob(pattern))]
    sets: list[dict[str, Any]] = []
    record_sets = []
    for name, (pattern, about) in parts.items():
        held = {file.relative_to(folder).as_posix(): _fields_in(file) for file in sorted(folder.glob(pattern))}
        everywhere = [field for field in FIELDS if all(field in fields for fields in held.values())]
        found = [(name, about, everywhere, list(held))]
        for field in FIELDS:
            some = [file for file, fields in held.items() if field in fields]
            if some and field not in everywhere:
                text = f"`{field}` of the examples in {name} that have one, by their id."
                found.append((f"{name}_{field}", text, ["id", field], some))
        for part, text, fields, paths in found:
            origin = {"fileObject": {"@id": paths[0]}}
            if "*" in pattern:
                sets.append(_file_set(part, paths if len(paths) < len(held) else [pattern]))
                origin = {"fileSet": {"@id": sets[-1]["@id"]}}
            record_sets.append(_record_set(part, text, fields, origin))
    return {
        "distribution": [*(_file_object(folder, file) for file in files), *sets],
        "recordSet": record_sets,
    }


def _fields_in(file: Path) -> set[str]:
    """Fields that at least one example of `file` holds."""
    return {field for row in read_objects(file) for field in row}


def _file_object(folder: Path, file: Path) -> dict[str, Any]:
    path = file.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "description": f"{len(read_objects(file))} examples, one JSON object a line, UTF-8.",
        "contentUrl": path,
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": JSON_LINES,
        "sha256": sha256_file(file),
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
