"""data/croissant.json: the card of the data set says what the files hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

from helpers.project import ROOT
from noesis.dataset.schema import Example, Source, Turn

CARD = json.loads((ROOT / "data" / "croissant.json").read_text(encoding="utf-8"))
FIELDS = {
    record_set["@id"]: {field["name"]: field for field in record_set["field"]} for record_set in CARD["recordSet"]
}


def test_the_card_is_the_one_that_the_files_make():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_croissant.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_data_file_is_listed_with_its_hash():
    listed = {part["contentUrl"]: part["sha256"] for part in CARD["distribution"] if part["@type"] == "cr:FileObject"}
    files = sorted((ROOT / "data" / "training").rglob("*.jsonl"))  # the Tribunal's questions are no training data
    assert listed == {
        f.relative_to(ROOT / "data").as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
    }


def test_every_field_of_a_record_is_described_in_both_languages():
    for language in ("pt", "en"):
        described = {
            name: field
            for record_set, fields in FIELDS.items()
            if record_set.startswith(f"examples_{language}")
            for name, field in fields.items()
        }
        assert described.keys() == Example.model_fields.keys()
        assert all(field["description"] for field in described.values())
        for name, part in (("turns", Turn), ("sources", Source)):
            assert [field["name"] for field in described[name]["subField"]] == list(part.model_fields)
    assert FIELDS["train"].keys() == Example.model_fields.keys()


def test_each_field_is_in_every_file_of_its_record_set():
    """Readers of Croissant stop at a file that has no such column."""
    sets = {part["@id"]: part["includes"] for part in CARD["distribution"] if part["@type"] == "cr:FileSet"}
    for fields in FIELDS.values():
        for name, field in fields.items():
            source = (field.get("subField") or [field])[0]["source"]
            assert source["extract"] == {"column": name}
            patterns = sets[source["fileSet"]["@id"]] if "fileSet" in source else source["fileObject"]["@id"]
            files = [
                file
                for pattern in ([patterns] if isinstance(patterns, str) else patterns)
                for file in (ROOT / "data").glob(pattern)
            ]
            assert files
            assert all(
                any(name in json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
                for file in files
            ), name
