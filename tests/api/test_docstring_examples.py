"""The examples in the docstrings of `noesis.api`, run in order as one session with a tiny model."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import noesis
from helpers.project import small_project_in
from helpers.tiny_runs import toy_tribunal
from noesis.core import console

ORDER = ("create_project", "load_project", "validate", "plan", "train", "judge", "merge", "export_gguf", "certify", "report", "push", "serve", "chat")  # fmt: skip


def set_key(file: Path, key: str, value: object) -> None:
    """Change one top-level or unique key of a YAML file, as a user would."""
    text, count = re.subn(rf"(?m)^(\s*){key}:.*", rf"\g<1>{key}: {value}", file.read_text(encoding="utf-8"), count=1)
    assert count == 1, key
    file.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_examples_of_the_docstrings(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    project = small_project_in(tmp_path / "my-philosopher")
    toy_tribunal(project.root)
    for key, value in {"model": tiny_model, "language": "en", "answers": 2, "max_new_tokens": 8, "kept_items": 9, "learning_rate": "1.0e-2"}.items():  # fmt: skip
        set_key(project.training_yaml, key, value)
    set_key(project.lora_yaml, "r", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NOESIS_PROJECT", str(project.root))
    monkeypatch.setattr(console, "_quiet_stdout", True)  # what the stages print is not the examples' output
    names: dict[str, object] = {"noesis": noesis}
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for name in ORDER:
        (example,) = finder.find(getattr(noesis, name), name, globs=names, module=False)
        assert example.examples, f"{name} has no example"
        example.globs = names  # find() copies them; each example goes on from the ones before
        runner.run(example, clear_globs=False)
        assert runner.failures == 0, name


def test_every_public_function_has_an_example():
    functions = {name for name in noesis.__all__ if name.islower() and callable(getattr(noesis, name))}
    assert functions == {*ORDER, "load_run"}


def test_the_settings_of_the_functions_are_those_of_the_options():
    overrides = importlib.import_module("noesis.core.overrides")
    assert set(overrides.Settings.__annotations__) == set(overrides.Overrides.__dataclass_fields__)
