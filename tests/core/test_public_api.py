"""The public names of `noesis`: each is there, and none costs anything before it is used."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import noesis
from noesis.core import errors


def test_every_public_name_can_be_imported():
    for name in noesis.__all__:
        assert getattr(noesis, name) is not None
    assert set(noesis.__all__) <= set(dir(noesis))
    assert noesis.Project.__module__ == "noesis.core.project"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = noesis.Nothing


def test_importing_the_package_loads_nothing_of_it():
    code = "import sys, __future__; before = set(sys.modules); import noesis; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["noesis"]


def test_the_tree_of_errors_shows_each_class_once_with_its_bases():
    shown = re.findall(r"(\w+) (?:\(\w+\) )?\s*exit (\d)", errors.__doc__ or "")
    assert sorted(name for name, _ in shown) == sorted(errors.__all__)
    assert {name: int(code) for name, code in shown} == {
        name: getattr(errors, name).exit_code for name in errors.__all__
    }
