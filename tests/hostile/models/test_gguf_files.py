"""Attacks by GGUF files: numbers, lengths and offsets that lie, and templates that crash llama.cpp."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.tiny_gguf import write_reciter
from noesis.core.errors import ModelError
from noesis.llm.gguf.header import read_header

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_reciter(tmp_path_factory.mktemp("gguf") / "sound.gguf", ["yes"]).read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number_of(whole: bytes, key: str, value: int) -> bytes:
    """The file with another number (of 32 bits) as the value of `key`."""
    at = whole.index(text(key)) + len(text(key))
    assert struct.unpack_from("<I", whole, at)[0] == UINT32
    return whole[: at + 4] + struct.pack("<I", value) + whole[at + 8 :]


def kind_of(whole: bytes, key: str, kind: int) -> bytes:
    at = whole.index(text(key)) + len(text(key))
    return whole[:at] + struct.pack("<I", kind) + whole[at + 4 :]


def count_of_list(whole: bytes, key: str, count: int) -> bytes:
    at = whole.index(text(key)) + len(text(key))
    assert struct.unpack_from("<I", whole, at)[0] == ARRAY
    return whole[: at + 8] + struct.pack("<Q", count) + whole[at + 16 :]


def tensor(whole: bytes, name: str, **change: int) -> bytes:
    """The file with another word in what it says of a two-dimensional tensor."""
    at = whole.index(text(name) + struct.pack("<I", 2)) + len(text(name))
    place, form = {
        "dimensions": (0, "I"),
        "rows": (4, "Q"),
        "columns": (12, "Q"),
        "type": (20, "I"),
        "offset": (24, "Q"),
    }[next(iter(change))]
    packed = struct.pack("<" + form, *change.values())
    return whole[: at + place] + packed + whole[at + place + len(packed) :]


def renamed(whole: bytes, old: str, new: str) -> bytes:
    assert len(old) == len(new)
    return whole.replace(text(old), text(new))


def extra_key(whole: bytes, value: bytes) -> bytes:
    """One more key at the front."""
    keys = struct.unpack_from("<Q", whole, 16)[0]
    return whole[:16] + struct.pack("<Q", keys + 1) + value + whole[24:]


Forge = Callable[[bytes], bytes]
ATTACKS: dict[str, Forge] = {
    "a block_count of 0": lambda w: number_of(w, "llama.block_count", 0),
    "a block_count of 2³¹": lambda w: number_of(w, "llama.block_count", 1 << 31),
    "a block_count of 2³²−1": lambda w: number_of(w, "llama.block_count", 0xFFFFFFFF),
    "a context_length of 0": lambda w: number_of(w, "llama.context_length", 0),
    "a context_length of 2³¹": lambda w: number_of(w, "llama.context_length", 1 << 31),
    "an embedding_length of 0": lambda w: number_of(w, "llama.embedding_length", 0),
    "an embedding_length of 2³²−1": lambda w: number_of(w, "llama.embedding_length", 0xFFFFFFFF),
    "a head_count of 0": lambda w: number_of(w, "llama.attention.head_count", 0),
    "a head_count of 2³¹": lambda w: number_of(w, "llama.attention.head_count", 1 << 31),
    "a head_count_kv of 2³¹": lambda w: number_of(w, "llama.attention.head_count_kv", 1 << 31),
    "a feed_forward_length of 2³²−1": lambda w: number_of(w, "llama.feed_forward_length", 0xFFFFFFFF),
    "a vocab_size of 0": lambda w: number_of(w, "llama.vocab_size", 0),
    "a rope dimension of 2³¹": lambda w: number_of(w, "llama.rope.dimension_count", 1 << 31),
    "an end token beyond the vocabulary": lambda w: number_of(w, "tokenizer.ggml.eos_token_id", 1 << 30),
    "a context_length that is missing": lambda w: renamed(w, "llama.context_length", "llama.context_lengt0"),
    "a number that is a float": lambda w: kind_of(w, "llama.block_count", 6),
    "a number that is a truth value": lambda w: kind_of(w, "llama.block_count", 7),
    "a value of an unknown type": lambda w: kind_of(w, "llama.block_count", 99),
    "an architecture that is a number": lambda w: kind_of(w, "general.architecture", UINT64),
    "a list of 2⁶³ tokens": lambda w: count_of_list(w, "tokenizer.ggml.tokens", 1 << 63),
    "a list of no tokens": lambda w: count_of_list(w, "tokenizer.ggml.tokens", 0),
    "a list of 2⁴⁰ merges": lambda w: count_of_list(w, "tokenizer.ggml.merges", 1 << 40),
    "fewer types than tokens": lambda w: count_of_list(w, "tokenizer.ggml.token_type", 3),
    "2⁶⁴−1 tensors": lambda w: w[:8] + b"\xff" * 8 + w[16:],
    "2⁶⁴−1 keys": lambda w: w[:16] + b"\xff" * 8 + w[24:],
    "a key of 2⁶³ bytes": lambda w: w[:24] + struct.pack("<Q", 1 << 63) + w[32:],
    "a text of 2⁴⁰ bytes": lambda w: extra_key(w, text("a.b") + struct.pack("<IQ", STRING, 1 << 40)),
    "a list within a list": lambda w: extra_key(w, text("a.b") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", ARRAY, 0)),
    "lists within lists without end": lambda w: extra_key(w, text("a.b") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 5000),
    "a key that is there twice": lambda w: extra_key(w, text("llama.block_count") + struct.pack("<II", UINT32, 1)),
    "an alignment of 0": lambda w: extra_key(w, text("general.alignment") + struct.pack("<II", UINT32, 0)),
    "an alignment of 3": lambda w: extra_key(w, text("general.alignment") + struct.pack("<II", UINT32, 3)),
    "an alignment of 2³¹": lambda w: extra_key(w, text("general.alignment") + struct.pack("<II", UINT32, 1 << 31)),
    "a tensor of 0 dimensions": lambda w: tensor(w, "output.weight", dimensions=0),
    "a tensor of 2³² dimensions": lambda w: tensor(w, "output.weight", dimensions=0xFFFFFFFF),
    "a tensor of 0 rows": lambda w: tensor(w, "output.weight", rows=0),
    "a tensor of 2⁶³ rows": lambda w: tensor(w, "output.weight", rows=1 << 63),
    "a tensor whose size overflows": lambda w: tensor(tensor(w, "output.weight", rows=(1 << 31) - 1), "output.weight", columns=(1 << 31) - 1),
    "a tensor twice as large as its bytes": lambda w: tensor(w, "output.weight", columns=1 << 20),
    "a tensor of an unknown type": lambda w: tensor(w, "output.weight", type=1000),
    "a tensor of a type that llama.cpp dropped": lambda w: tensor(w, "output.weight", type=4),
    "a tensor before the file": lambda w: tensor(w, "output.weight", offset=(1 << 64) - 32),
    "a tensor behind the file": lambda w: tensor(w, "output.weight", offset=1 << 40),
    "a tensor that begins between two places": lambda w: tensor(w, "output.weight", offset=7),
    "a tensor that is there twice": lambda w: renamed(w, "blk.0.attn_q.weight", "blk.0.attn_k.weight"),
    "a file that is cut in its head": lambda w: w[:500],
    "a file that is cut in its last tensor": lambda w: w[:-64],
    "a file of its first eight bytes": lambda w: w[:8],
    "a file of version 1": lambda w: w[:4] + struct.pack("<I", 1) + w[8:],
    "a file in the other byte order": lambda w: w[:4] + struct.pack(">I", 3) + w[8:],
}  # fmt: skip


@pytest.mark.parametrize("forge", [pytest.param(forge, id=name) for name, forge in ATTACKS.items()])
def test_a_lying_gguf_is_one_message_before_llama_cpp_sees_it(sound: bytes, tmp_path: Path, forge: Forge):
    file = tmp_path / "x.gguf"
    file.write_bytes(forge(sound))
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        read_header(file)
    assert time.process_time() - start < 5
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_file_passes(sound: bytes, tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(sound)
    header = read_header(tmp_path / "x.gguf")
    assert header.metadata["llama.block_count"] == 1
    assert len(header.tensors) == 12


def test_llama_cpp_may_take_memory_by_its_file_and_context(sound: bytes, tmp_path: Path):
    from noesis.llm.isolated.llama_process import WORKING_MEMORY, memory_limit

    def limit(content: bytes, context: int) -> int:
        file.write_bytes(content)
        return memory_limit({"model": {"path": str(file)}, "n_ctx": context})

    file = tmp_path / "x.gguf"
    least = limit(sound, 0)
    assert least == 2 * len(sound) + WORKING_MEMORY < psutil.virtual_memory().total
    assert limit(sound, 1000) - least == 1000 * 2 * 2 * 32  # keys and values of one head of 32, in 16 bits
    boastful = number_of(number_of(sound, "llama.attention.head_count", 1 << 14), "llama.block_count", 2000)
    assert limit(boastful, 1000) == limit(sound, 1000)  # what the file claims is no reason, what it holds is
    assert limit(sound, 1 << 50) == psutil.virtual_memory().total


# --- llama.cpp in a process of its own ------------------------------------------------------------------------------


def with_template(folder: Path, template: str) -> Path:
    import helpers.tiny_gguf as made

    before = made.TEMPLATE
    made.TEMPLATE = template
    try:
        return write_reciter(folder / "x.gguf", ["yes"])
    finally:
        made.TEMPLATE = before


def ask(file: Path) -> str:
    from noesis.llm.llama_cpp import LlamaEngine

    return LlamaEngine(file, context=256).chat([{"role": "user", "content": "a"}], max_tokens=4)


TEMPLATES = [
    pytest.param("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", id="a macro that calls itself until the stack is gone"),
    pytest.param("{% if messages[0].content == 'a' %}{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}{% endif %}", id="a macro that calls itself at the first request"),
    pytest.param("{% if messages %}" * 20000 + "{% endif %}" * 20000, id="20,000 nested blocks in a GGUF"),
    pytest.param("{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", id="100,000 brackets in a GGUF"),
    pytest.param("{{ " + "not " * 100000 + "1 }}", id="100,000 negations in a GGUF"),
    pytest.param("{{ [" * 3000 + "]}}" * 3000, id="a template of lists within lists in a GGUF"),
]  # fmt: skip


def test_lists_are_bounded_together(sound: bytes, tmp_path: Path):
    """300 sparse lists of four million zeros, 1 MB on the disk, took 10 GB."""
    file, whole = tmp_path / "x.gguf", sound
    for i in range(3):
        items = struct.pack("<IIQ", ARRAY, 0, 2_000_000)
        whole = extra_key(whole, text(f"general.zeros{i}") + items + bytes(2_000_000))
    file.write_bytes(whole)
    with pytest.raises(ModelError, match="items of lists"):
        read_header(file)


@pytest.mark.timing
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_crashes_llama_cpp_does_not_crash_us(tmp_path: Path, template: str):
    """llama.cpp ends with SIGSEGV or SIGABRT on most of them, at loading or at the request; a few it refuses or survives."""
    file = with_template(tmp_path, template)
    before = {child.pid for child in psutil.Process().children()}
    try:
        answer = ask(file)
    except ModelError as error:
        answer = str(error)
        assert str(file) in answer or "llama.cpp refuses" in answer
        assert "\n" not in answer
    assert isinstance(answer, str)
    assert ask(write_reciter(tmp_path / "y.gguf", ["yes"])) == "yes"  # we still can
    assert {child.pid for child in psutil.Process().children()} >= before


@pytest.mark.timing
def test_a_template_without_end_does_not_stop_us_from_ending_it(tmp_path: Path):
    from noesis.llm.llama_cpp import LlamaServer

    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}a{% endfor %}{% endfor %}{% endfor %}"
    file = with_template(tmp_path, "{% if messages[0].content == 'loop' %}" + loops + "{% endif %}a")
    start = time.monotonic()
    server = LlamaServer(file, parallel=1, context=256)
    child = psutil.Process(server._server._child._process.pid)
    assert server.stop(1.0)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - start < 60


@pytest.mark.timing
def test_a_llama_cpp_that_is_killed_at_work_is_one_message(tmp_path: Path):
    from noesis.llm.llama_cpp import LlamaEngine

    engine = LlamaEngine(write_reciter(tmp_path / "x.gguf", ["yes", " no"], forever=True), context=8192)

    def kill(_: str) -> None:
        os.kill(engine._server._child._process.pid, signal.SIGKILL)

    with pytest.raises(ModelError, match="llama"):
        engine.chat([{"role": "user", "content": "a"}], max_tokens=4000, on_token=kill)
    with pytest.raises(ModelError, match="its process ended"):
        engine.chat([{"role": "user", "content": "a"}], max_tokens=4)


@pytest.mark.timing
def test_llama_cpp_is_reached_without_the_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(write_reciter(tmp_path / "x.gguf", ["yes"])) == "yes"


def test_every_reader_of_gguf_files_checks_them_first(sound: bytes, tmp_path: Path):
    from noesis.llm.clients.gguf_client import GgufClient
    from noesis.llm.llama_cpp import LlamaEngine, LlamaServer
    from noesis.release.parity.audit import open_gguf
    from noesis.release.parity.llama_logits import LlamaModel

    file = tmp_path / "x.gguf"
    file.write_bytes(number_of(sound, "llama.block_count", 0))
    readers: list[Callable[[Path], Any]] = [read_header, LlamaServer, LlamaEngine, GgufClient, LlamaModel, open_gguf]
    for read in readers:
        with pytest.raises(ModelError, match=r"block_count is 0"):
            read(file)
