"""Attacks by a model's tokenizer and chat template: they loop, take all memory, or crash what reads them."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.project import ROOT, make_tokenizer_files
from noesis.core.errors import ModelError
from noesis.llm.isolated import remote_tokenizer as module
from noesis.llm.isolated.child import Child
from noesis.llm.tokenizer import load_tokenizer

QUESTION = [{"role": "user", "content": "a"}]
SECONDS = 3.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "ANSWER_S", SECONDS)
    monkeypatch.setattr(module, "LOAD_S", 4 * SECONDS)
    make_tokenizer_files(tmp_path)
    return tmp_path


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def memory_taken_by(work: Callable[[], object]) -> int:
    """Bytes by which the memory of this process grew at its highest."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def refusal(work: Callable[[], object]) -> str:
    """The one message in which it ends; neither our time nor our memory was taken."""
    messages: list[str] = []

    def attempt() -> None:
        with pytest.raises(ModelError) as caught:
            work()
        messages.append(str(caught.value))

    start = time.process_time()
    assert memory_taken_by(attempt) < 500e6
    assert time.process_time() - start < 2 * SECONDS
    assert "\n" not in messages[0]
    assert len(messages[0]) < 2000
    return messages[0]


NESTED = "{% if messages %}"
TEMPLATES = [
    pytest.param("{% for i in range(10**9) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", id="a template with an endless loop"),
    pytest.param("{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}", id="a template with loops within the sandbox's range"),
    pytest.param("{{ 'a'.center(3000000000) }}", id="a template that asks for three gigabytes"),
    pytest.param("{{ 'a' * 3000000000 }}", id="a template that repeats a letter"),
    pytest.param("{{ '%3000000000d' % 1 }}", id="a template that formats a wide number"),
    pytest.param("{{ '{:3000000000}'.format(1) }}", id="a template that formats with a method"),
    pytest.param("{{ 'a'.ljust(900000000) }}{{ 'a'.ljust(900000000) }}", id="a template that pads twice"),
    pytest.param("{{ 9 ** (9 ** 9) }}", id="a template that computes a power"),
    pytest.param("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}", id="a template that doubles a text sixty times"),
    pytest.param("{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}", id="a template that doubles a list"),
    pytest.param("{{ 'a'|indent(2000000000, true) }}", id="a template that indents"),
    pytest.param("{{ lipsum(n=1000000) }}", id="a template that writes lorem ipsum"),
    pytest.param("{{ range(99999)|list|string * 9999 }}", id="a template that repeats a list's text"),
    pytest.param(NESTED * 5000 + "{% endif %}" * 5000, id="a template of 5,000 nested blocks"),
    pytest.param("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", id="a template of 20,000 brackets"),
    pytest.param("{{ " + "-" * 50000 + "1 }}", id="a template of 50,000 signs"),
    pytest.param("{{ 1" + "+1" * 100000 + " }}", id="a template with a long sum"),
    pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="a macro that calls itself"),
    pytest.param("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", id="a macro that calls itself twice"),
    pytest.param("{% set c = cycler(1, 2) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}{% endfor %}{% endfor %}", id="a cycler without end"),
    pytest.param("{{ [1]|batch(2000000000, 0)|list }}", id="a batch filled up to two billion"),
    pytest.param("{{ [1]|slice(2000000000)|list }}", id="a list cut into two billion slices"),
    pytest.param("{{ ''|tojson(indent=3000000000) }}{{ [1]|tojson(indent=3000000000) }}", id="JSON that is indented by gigabytes"),
    pytest.param("{{ raise_exception('a' * 500000000) }}", id="a refusal of half a gigabyte"),
    pytest.param("{{ ().__class__.__base__.__subclasses__() }}{{ raise_exception('x') }}", id="a template that leaves the sandbox"),
    pytest.param("{% include '/etc/passwd' %}", id="a template that includes a file"),
    pytest.param("{% import '/etc/passwd' as x %}", id="a template that imports a file"),
    pytest.param("{{ 'x' * (2 ** 63) }}", id="a template with a number beyond every memory"),
    pytest.param("{{ strftime_now('%1000000000Y') }}{{ raise_exception('x') }}", id="a date a gigabyte wide"),
    pytest.param("a" * 600_000, id="a template of 600,000 characters"),
    pytest.param("{{", id="a template that stops inside an expression"),
]  # fmt: skip


@pytest.mark.timing
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_hostile_template_is_stopped_with_one_message(folder: Path, template: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ANSWER_S", SECONDS / 3)  # each of the endless ones is waited for
    monkeypatch.setattr(module, "LOAD_S", 2 * SECONDS)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    words = refusal(lambda: load_tokenizer(folder).apply_chat_template(QUESTION))
    assert "template" in words


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("{{ messages | tojson(indent=4000000000) }}", "takes more than 3 GB of memory", id="a template that indents by gigabytes"),
        pytest.param("{{ 'a'.center(4000000000) }}", "takes more than 3 GB of memory", id="a template that pads by gigabytes"),
        pytest.param("{{ raise_exception('') }}", "refuses this conversation: TemplateError", id="a template that refuses without a word"),
        pytest.param("{{ messages[0].x.y }}", "refuses this conversation: ", id="a template that asks for what is not there"),
        pytest.param("{% if %}", "does not compile: ", id="a template that does not compile"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_which_template_is_said(folder: Path, template: str, why: str):
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    words = refusal(lambda: load_tokenizer(folder).apply_chat_template(QUESTION))
    assert f"the chat template of {folder} {why}" in words
    assert not words.rstrip().endswith(":")


@pytest.mark.timing
def test_a_template_that_was_stopped_is_not_tried_for_every_row(folder: Path):
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    tokenizer = load_tokenizer(folder)
    first = refusal(lambda: tokenizer.apply_chat_template(QUESTION))
    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(ModelError) as caught:
            tokenizer.apply_chat_template(QUESTION)
        assert str(caught.value) == first
    assert time.monotonic() - start < SECONDS
    assert str(folder) in first


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")


def multiply(raw: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 32}
    raw["normalizer"] = {"type": "Sequence", "normalizers": [step] * 8}


def multiply_when_decoded(raw: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 32}
    raw["decoder"] = {"type": "Sequence", "decoders": [raw["decoder"], *[step] * 8]}


def backtrack(raw: dict[str, Any]) -> None:
    raw["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"(a+)+(a+)+(a+)+$b"},
        "behavior": "Isolated",
        "invert": False,
    }


def pad_to_a_billion(raw: dict[str, Any]) -> None:
    raw["padding"] = {
        "strategy": {"Fixed": 4_000_000_000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }


@pytest.mark.timing
@pytest.mark.parametrize(
    ("change", "use"),
    [
        pytest.param(multiply, lambda t: t("a" * 100), id="normalizers that multiply a text to terabytes"),
        pytest.param(multiply_when_decoded, lambda t: t.decode(t("a" * 100)["input_ids"]), id="decoders that multiply a text"),
    ],
)  # fmt: skip
def test_a_hostile_tokenizer_is_stopped_with_one_message(
    folder: Path, change: Callable[[dict[str, Any]], None], use: Callable[[Any], object]
):
    rewrite(folder, change)
    words = refusal(lambda: use(load_tokenizer(folder)))
    assert str(folder / "tokenizer.json") in words


@pytest.mark.timing
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(pad_to_a_billion, id="padding to four billion tokens"),
        pytest.param(backtrack, id="a pre-tokenizer whose pattern backtracks"),
    ],
)
def test_a_tokenizer_with_a_costly_setting_answers_or_is_stopped(
    folder: Path, change: Callable[[dict[str, Any]], None]
):
    rewrite(folder, change)

    def use() -> None:
        try:
            assert len(load_tokenizer(folder)("a" * 40)["input_ids"]) <= 40
        except ModelError as error:
            assert str(folder / "tokenizer.json") in str(error)

    start = time.monotonic()
    assert memory_taken_by(use) < 500e6
    assert time.monotonic() - start < 6 * SECONDS


BROKEN = {
    "an empty tokenizer.json": b"",
    "a tokenizer.json that is a list": b"[]",
    "a tokenizer.json of nulls": b'{"model": null, "added_tokens": null}',
    "a tokenizer.json of opening brackets": b"[" * 1_000_000,
    "a tokenizer.json of objects within objects": b'{"a":' * 200_000,
    "a tokenizer.json that is not UTF-8": b'{"version": "\xff\xfe"}',
    "a vocabulary with ids beyond 32 bits": b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}',
    "a vocabulary with negative ids": b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    "merges of tokens that are not there": b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}',
}  # fmt: skip


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in BROKEN.items()])
def test_a_broken_tokenizer_is_one_message_that_names_the_file(folder: Path, content: bytes):
    (folder / "tokenizer.json").write_bytes(content)
    assert str(folder / "tokenizer.json") in refusal(lambda: load_tokenizer(folder))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[]", id="a tokenizer_config.json that is a list"),
        pytest.param(b"{", id="a tokenizer_config.json that is cut short"),
        pytest.param(b"\xff", id="a tokenizer_config.json that is not UTF-8"),
        pytest.param(b'{"a":' * 100_000, id="a tokenizer_config.json nested 100,000 deep"),
        pytest.param(b'{"chat_template": 5}', id="a chat template that is a number"),
        pytest.param(b'{"chat_template": [5, null]}', id="named chat templates that are no objects"),
        pytest.param(b'{"chat_template": [{"name": "default", "template": {}}]}', id="a named chat template that is an object"),
        pytest.param(b'{"chat_template": [{"name": "default"}]}', id="a named chat template without a text"),
    ],
)  # fmt: skip
def test_broken_settings_are_one_message(folder: Path, content: bytes):
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_bytes(content)
    assert str(folder) in refusal(lambda: load_tokenizer(folder))


def test_settings_of_a_gigabyte_are_not_read(folder: Path):
    with open(folder / "tokenizer_config.json", "r+b") as f:
        f.truncate(1 << 30)
    assert "longer than" in refusal(lambda: load_tokenizer(folder))


def test_a_tokenizer_of_a_gigabyte_is_not_read(folder: Path):
    with open(folder / "tokenizer.json", "r+b") as f:
        f.truncate(1 << 30)
    assert "more than" in refusal(lambda: load_tokenizer(folder))


def test_a_template_that_is_not_utf_8_is_one_message(folder: Path):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ x }}")
    assert "chat_template.jinja" in refusal(lambda: load_tokenizer(folder))


# --- the child ------------------------------------------------------------------------------------------------------


def test_the_child_gets_no_keys(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password"):
        monkeypatch.setenv(name, "a secret")
    before = children()
    tokenizer = load_tokenizer(folder)
    (new,) = children() - before
    environment = psutil.Process(new).environ()
    assert "a secret" not in environment.values()
    assert tokenizer.decode(tokenizer("verdade")["input_ids"]) == "verdade"


def test_a_child_whose_work_is_lost_ends_with_its_tokenizer(folder: Path):
    before = children()
    tokenizer = load_tokenizer(folder)
    (new,) = children() - before
    del tokenizer
    gc.collect()
    module._child_for.cache_clear()
    assert not psutil.pid_exists(new)


def test_a_child_that_someone_ended_is_said_once(folder: Path):
    before = children()
    tokenizer = load_tokenizer(folder)
    (new,) = children() - before
    os.kill(new, signal.SIGSEGV)
    assert "SIGSEGV" in refusal(lambda: tokenizer("a"))
    assert load_tokenizer(folder)("a")["input_ids"]  # the next one starts anew


def test_texts_of_every_kind_pass_the_child_unchanged(folder: Path):
    tokenizer = load_tokenizer(folder)
    for text in ("", "\n", "é", "\u2028", "\x00", "😀", "a" * 200_000, '"\\{'):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with pytest.raises(ModelError):
        tokenizer("\ud800")  # no tokenizer takes half of a pair


@pytest.mark.timing
def test_a_child_never_outlives_its_parent_even_while_it_loops(folder: Path):
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    code = f"""
import pathlib, threading
from noesis.llm.tokenizer import load_tokenizer
t = load_tokenizer(pathlib.Path({str(folder)!r}))
threading.Thread(target=lambda: t.apply_chat_template([{{"role": "user", "content": "a"}}]), daemon=True).start()
print("asked", flush=True)
threading.Event().wait()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "asked\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    assert child.wait(timeout=20) is None or not child.is_running()


def test_what_the_child_prints_neither_fills_a_disk_nor_reaches_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "loud.py").write_text(
        "import sys, os\n"
        "def handle(many):\n"
        "    try:\n"
        "        for _ in range(many): os.write(1, b'\\x1b[2J' * 100000)\n"
        "    except OSError as error: return str(error)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child("loud", memory=500_000_000)
    assert "too large" in child.ask("loud", 20, many=100)
    assert os.fstat(child._printed.fileno()).st_size <= 1_000_000
    child.close()
    assert capfd.readouterr() == ("", "")
