"""A reply cache that is damaged, locked, full, someone else's, or a trap."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from helpers.endpoints.asking import ask
from helpers.endpoints.raw_server import RawServer, chat, ok
from noesis.llm.clients import cache_file
from noesis.llm.clients.machine_key import sealed, unsealed
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.clients.reply_cache import open_cache

REPLY = ModelReply("7", "stop", 10, 5, 0.015)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cache with a reply."""
    path = tmp_path / "tribunal" / "replies.sqlite"
    with open_cache(path) as cache:
        cache.store("k", REPLY)
    return path


def works(path: Path) -> bool:
    """Whether a reply that is stored can be taken out again in the same process."""
    with open_cache(path) as cache:
        cache.store("new", REPLY)
        found = cache.reply("new")
    return found is not None and (found.text, found.cached) == ("7", True)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def with_sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return damage


FOREVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i FROM n"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda p: p.write_bytes(b"not a database, but words " * 99), id="a cache that is words"),
        pytest.param(lambda p: p.write_bytes(os.urandom(8192)), id="a cache of random bytes"),
        pytest.param(lambda p: overwrite(p, 100, b"\xff" * 200), id="a cache whose first page is damaged"),
        pytest.param(lambda p: overwrite(p, 4096, b"\xff" * 64), id="a cache whose second page is damaged"),
        pytest.param(lambda p: os.truncate(p, 5000), id="a cache that was cut off"),
        pytest.param(lambda p: overwrite(p, 16, b"\x00\x00"), id="a cache with pages of no size"),
        pytest.param(with_sql("CREATE TRIGGER t AFTER INSERT ON replies BEGIN DELETE FROM replies; END"), id="a cache with a trigger"),
        pytest.param(with_sql("DROP TABLE replies", f"CREATE VIEW replies (key, value) AS {FOREVER}"), id="a cache whose table is a view without end"),
        pytest.param(with_sql("DROP TABLE replies", "CREATE TABLE replies (key, value, more)"), id="a cache with another table"),
        pytest.param(with_sql("DROP TABLE replies", "CREATE TABLE replies (key TEXT PRIMARY KEY, value TEXT CHECK (length(value) < 1))"), id="a cache that refuses every reply"),
        pytest.param(with_sql("CREATE TABLE passwords (a)"), id="a database with other tables"),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_set_aside_and_kept(file: Path, damage: Callable, capsys: pytest.CaptureFixture):
    damage(file)
    before = file.read_bytes()
    assert works(file)
    kept = [p for p in file.parent.iterdir() if p.name.startswith("replies.sqlite.damaged-") and p.suffix != ".x"]
    # what follows in a database's head counts its changes
    assert any(p.read_bytes()[:24] == before[:24] for p in kept), list(file.parent.iterdir())
    assert capsys.readouterr().out.count("a new one begins") == 1
    with open_cache(file) as cache:
        assert cache.reply("new") is not None  # the new one lasts


def lock(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("BEGIN EXCLUSIVE")
    return db


def test_a_cache_that_another_process_holds_stops_nothing(file: Path, monkeypatch, capsys):
    monkeypatch.setattr(cache_file, "LOCKED_S", 0.05)
    holder = lock(file)
    assert works(file)
    holder.close()
    assert "stay in memory" in capsys.readouterr().out
    with open_cache(file) as cache:
        assert cache.reply("k") is not None


def test_replies_that_were_stored_while_it_was_locked_are_written_at_the_end(file: Path, monkeypatch, capsys):
    monkeypatch.setattr(cache_file, "LOCKED_S", 0.05)
    with open_cache(file) as cache:
        holder = sqlite3.connect(file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        cache.store("new", REPLY)
        cache.add_spent(2.0)
        assert cache.reply("new") is not None and cache.spent() == 2.0
        holder.close()
    assert capsys.readouterr().out.count("can't be written") == 1
    with open_cache(file) as cache:
        assert cache.reply("new") is not None and cache.spent() == 2.0


def trap_link(path: Path, victim: Path) -> None:
    path.unlink()
    path.symlink_to(victim)


def trap_hard_link(path: Path, victim: Path) -> None:
    path.unlink()
    os.link(victim, path)


def trap_log(path: Path, victim: Path) -> None:
    path.with_name(path.name + "-wal").symlink_to(victim)


def trap_dangling(path: Path, victim: Path) -> None:
    path.unlink()
    path.symlink_to(victim.with_name("made-by-noesis"))


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(trap_link, id="a cache that is a link to the user's database"),
        pytest.param(trap_hard_link, id="a cache that is the user's database by a hard link"),
        pytest.param(trap_log, id="a cache whose log is a link to the user's database"),
        pytest.param(trap_dangling, id="a cache that is a link to where nothing is"),
    ],
)
def test_a_cache_that_leads_elsewhere_changes_nothing_there(file: Path, tmp_path: Path, trap: Callable, capsys):
    victim = tmp_path / "cookies.sqlite"
    with sqlite3.connect(victim) as db:
        db.execute("CREATE TABLE cookies (a)")
    before, listed = victim.read_bytes(), sorted(tmp_path.iterdir())
    trap(file, victim)
    assert works(file)
    assert (victim.read_bytes(), sorted(tmp_path.iterdir())) == (before, listed)
    assert "stay in memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="a cache that is a pipe"),
        pytest.param(lambda p: p.mkdir(), id="a cache that is a folder"),
        pytest.param(lambda p: (shutil.rmtree(p.parent), p.parent.write_text("x")), id="a cache below a file"),
    ],
)
def test_a_cache_that_is_no_file_is_not_opened(file: Path, make: Callable, capsys):
    file.unlink()
    make(file)
    assert works(file)
    assert "stay in memory" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="owners are POSIX's")
def test_another_users_cache_is_not_believed(file: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    before = file.read_bytes()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with open_cache(file) as cache:
        assert cache.reply("k") is None
    assert file.read_bytes() == before
    assert "belongs to user" in capsys.readouterr().out


def test_a_cache_that_everyone_may_write_is_not_believed(file: Path, capsys):
    file.chmod(0o666)
    with open_cache(file) as cache:
        assert cache.reply("k") is None
    assert "everyone may write" in capsys.readouterr().out


FULL = """
import resource, sys
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.protocol import ModelReply
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
from pathlib import Path
with open_cache(Path(sys.argv[1])) as cache:
    print("old", cache.reply("k") is not None)
    for i in range(50):
        cache.store(f"n{i}", ModelReply("x" * 5000))
    print("all", all(cache.reply(f"n{i}") is not None for i in range(50)))
"""


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(60_000, id="a disk that fills while replies come"),
        pytest.param(0, id="a disk that was full before"),
    ],
)
def test_a_full_disk_loses_no_reply_of_this_process(file: Path, room: int):
    arguments = [sys.executable, "-c", FULL, str(file), str(room)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "old True" in done.stdout and "all True" in done.stdout
    assert done.stdout.count("can't be written") <= 1 and "could not be written" in done.stdout
    with open_cache(file) as cache:
        assert cache.reply("k") is not None


def test_a_cache_that_may_only_be_read_is_read(file: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(cache_file, "_connect", read_only(cache_file._connect, file))
    with open_cache(file) as cache:
        assert cache.reply("k") is not None
        cache.store("new", REPLY)
        assert cache.reply("new") is not None
    assert capsys.readouterr().out.count("can't be written") == 1


def read_only(connect: Callable, file: Path) -> Callable:
    """As for a user without the right to write, which root always has."""
    return lambda name: connect(f"{file.as_uri()}?mode=ro" if name == file else name)


# --- what is in it


def stored(**fields: object) -> str:
    plain = {"text": "7", "finish": "stop", "prompt_tokens": 10, "completion_tokens": 5, "usd": 0.01}
    return json.dumps(plain | fields)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("{", id="a stored reply that is no JSON"),
        pytest.param("[" * 100_000, id="a stored reply of a hundred thousand brackets"),
        pytest.param("7", id="a stored reply that is a number"),
        pytest.param("null", id="a stored reply that is null"),
        pytest.param("{}", id="a stored reply of nothing"),
        pytest.param(b"\xff\xfe", id="a stored reply that is bytes"),
        pytest.param(3.5, id="a stored reply that is no text"),
        pytest.param(stored(text=7), id="a stored text that is a number"),
        pytest.param('{"text": "\\ud800", "finish": "", "prompt_tokens": 1, "completion_tokens": 1, "usd": 1}', id="a stored text of half a character"),
        pytest.param(stored(usd=-5), id="a stored reply that gave money back"),
        pytest.param(stored(usd=1e308), id="a stored reply that cost all the money there is"),
        pytest.param(stored(usd=5).replace("5}", "1e999}"), id="a stored reply of infinite cost"),
        pytest.param(stored(usd=5).replace("5}", "NaN}"), id="a stored reply that cost NaN"),
        pytest.param(stored(prompt_tokens=-1), id="a stored reply of fewer than no tokens"),
        pytest.param(stored(prompt_tokens=10**400), id="a stored reply of more tokens than a float holds"),
        pytest.param(stored(cached=False), id="a stored reply that says it is not stored"),
        pytest.param(stored(alternatives=[[["A", 1e6]]]), id="a stored log-probability whose exponential is infinite"),
        pytest.param(stored(alternatives=[[["A"]]]), id="a stored alternative without log-probability"),
        pytest.param(stored(alternatives={"A": 1}), id="stored alternatives that are an object"),
    ],
)  # fmt: skip
def test_a_stored_reply_that_is_none_is_asked_for_again(file: Path, value: object, capsys: pytest.CaptureFixture):
    with RawServer(lambda number: ok(chat("8"))) as server:
        with open_cache(file) as cache:
            ask(server, 2, cache=cache)
        with sqlite3.connect(file) as db:
            for (key,) in db.execute("SELECT key FROM replies").fetchall():
                own = sealed(key, value) if isinstance(value, str) else value
                db.execute("UPDATE replies SET value = ? WHERE key = ?", (own, key))
        with open_cache(file) as cache:
            found = ask(server, 2, cache=cache)
        assert len(server.requests) == 4
        with open_cache(file) as cache:
            ask(server, 2, cache=cache)
        assert len(server.requests) == 4
    assert [reply.text for reply in found] == ["8", "8"]
    assert capsys.readouterr().out.count("asked for again") == 1


def test_a_stored_reply_with_alternatives_is_the_reply_that_was_stored(file: Path):
    reply = ModelReply("A", "stop", 1, 1, None, top_logprobs=((("A", -0.5), ("B", -1.0)), ()))
    with open_cache(file) as cache:
        cache.store("tops", reply)
        found = cache.reply("tops")
    assert (found.top_logprobs, found.usd) == (reply.top_logprobs, None)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda key, text: text, id="a stored reply without a seal"),
        pytest.param(lambda key, text: f"{'0' * 64} {text}", id="a stored reply under a seal of zeros"),
        pytest.param(lambda key, text: sealed("another", text), id="a stored reply that answers another question"),
        pytest.param(
            lambda key, text: sealed(key, text).replace('"8"', '"2"'),
            id="a stored reply that was changed under its seal",
        ),
    ],
)
def test_a_reply_that_this_machine_did_not_store_is_asked_for_again(file: Path, forge: Callable[[str, str], str]):
    """A stranger's run can hold replies that nobody gave: they would decide a trial that the user pays for."""
    with RawServer(lambda number: ok(chat("8"))) as server:
        with open_cache(file) as cache:
            ask(server, 1, cache=cache)
        with sqlite3.connect(file) as db:
            ((key, value),) = db.execute("SELECT key, value FROM replies WHERE key != 'k'").fetchall()
            db.execute("UPDATE replies SET value = ? WHERE key = ?", (forge(key, value.partition(" ")[2]), key))
        with open_cache(file) as cache:
            (found,) = ask(server, 1, cache=cache)
        assert (len(server.requests), found.text, found.cached) == (2, "8", False)


def test_replies_of_another_machine_are_asked_for_again_and_those_of_this_one_are_not(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with RawServer(lambda number: ok(chat("8"))) as server:
        for machine, requests in (("mine", 1), ("theirs", 2), ("theirs", 2), ("mine", 3)):
            monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / machine))
            with open_cache(file) as cache:
                ask(server, 1, cache=cache)
            assert len(server.requests) == requests
    assert (tmp_path / "mine" / "machine.key").stat().st_mode & 0o777 == 0o600


def test_a_secret_that_can_not_be_kept_holds_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "no-folder" / "cache"))
    assert unsealed("a", sealed("a", "text")) == "text"
    assert capsys.readouterr().out.count("can't be used") == 1


def test_an_entry_of_a_gigabyte_is_not_read(file: Path, capsys: pytest.CaptureFixture):
    with sqlite3.connect(file) as db:
        db.execute("UPDATE replies SET value = CAST(zeroblob(100000000) AS TEXT)")
    db.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_cache(file) as cache:
        assert cache.reply("k") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90_000
    assert "can't be read" in capsys.readouterr().out
