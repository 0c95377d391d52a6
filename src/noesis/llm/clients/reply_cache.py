"""Replies by content hash in one SQLite file: stopped work continues where it stopped, and nothing is paid for twice.

Only whole replies are stored; a request that failed is made again next time. The file is input like any other: see
`cache_file.py` for which one is opened; of its entries, those are believed that this machine has sealed. Where it can't
be written, what this process stores stays in memory, is offered to the file once more at the end, and the work goes on.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.core.console import say
from noesis.core.i18n import _
from noesis.llm.clients.cache_file import LOCKED_S, open_database
from noesis.llm.clients.chat_reply import MOST_TOKENS, MOST_USD, Logprob
from noesis.llm.clients.machine_key import sealed, unsealed
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.http_reply import parse_json

Tokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


class _StoredReply(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    text: str
    finish: str
    prompt_tokens: Tokens
    completion_tokens: Tokens
    usd: Annotated[float, Field(ge=0, le=MOST_USD)] | None
    alternatives: tuple[tuple[tuple[str, Logprob], ...], ...] = ()


ADD_SPENT = "INSERT INTO spending VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET usd = max(0.0, usd + excluded.usd)"


class ReplyCache:
    """A key-value store of JSON values; each `put` is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_database(path)
        self._unsaved: dict[str, str] = {}  # what could not be written, or was stored after that
        self._unsaved_usd = 0.0
        self._told: set[str] = set()
        self._works = True

    def get(self, key: str) -> Any | None:
        """The stored JSON value, None if there is none that can be read."""
        stored = self._stored(key)
        try:
            return None if stored is None else parse_json(stored)
        except (ValueError, TypeError):
            self._disbelieve()
            return None

    def put(self, key: str, value: Any) -> None:
        self.put_all({key: value})

    def put_all(self, values: dict[str, Any]) -> None:
        """Store several values, all or none."""
        stored = {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in values.items()}
        if not self._works or not self._write(stored, 0.0):
            self._unsaved |= stored

    def reply(self, key: str) -> ModelReply | None:
        """A stored reply, marked as cached: it was paid for before."""
        stored = self._stored(key)
        if stored is None:
            return None
        try:
            reply = _StoredReply.model_validate_json(stored)
        except (ValidationError, TypeError):
            self._disbelieve()
            return None
        paid = reply.model_dump(exclude={"alternatives"})
        return ModelReply(**paid, cached=True, top_logprobs=reply.alternatives)

    def store(self, key: str, reply: ModelReply) -> None:
        self.put(
            key,
            {
                "text": reply.text,
                "finish": reply.finish,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "usd": reply.usd,
            }
            | ({"alternatives": reply.top_logprobs} if reply.top_logprobs else {}),
        )

    def spent(self) -> float:
        """USD that commands with this cache have spent, as `add_spent` was told."""
        stored = self._read("SELECT usd FROM spending WHERE id = ?", 1)
        if stored is not None and not (isinstance(stored, float) and 0 <= stored < math.inf):
            self._disbelieve()
            stored = None
        return (stored or 0.0) + self._unsaved_usd

    def add_spent(self, usd: float) -> None:
        """Remember `usd` more; a negative amount takes back what was only reserved."""
        if not self._works or not self._write({}, usd):
            self._unsaved_usd += usd

    def close(self) -> None:
        """Write what could not be written before, and say what is lost if it still can't be."""
        if self._unsaved or self._unsaved_usd:
            with suppress(sqlite3.Error):
                self._db.execute(f"PRAGMA busy_timeout = {LOCKED_S * 1000:.0f}")
            if not self._write(self._unsaved, self._unsaved_usd) and self._unsaved:
                say(
                    _(
                        "  the reply cache {path} lacks the last {unsaved}, which could not be written",
                        path=self._path,
                        unsaved=len(self._unsaved),
                    )
                )
        self._db.close()

    def _stored(self, key: str) -> str | None:
        if key in self._unsaved:
            return self._unsaved[key]
        stored = self._read("SELECT value FROM replies WHERE key = ?", key)
        if stored is None:
            return None
        text = unsealed(key, stored) if isinstance(stored, str) else None
        if text is None:
            self._disbelieve()
        return text

    def _read(self, query: str, name: str | int) -> Any | None:
        try:
            row = self._db.execute(query, (name,)).fetchone()
        except sqlite3.Error as error:
            self._fail(_("can't be read ({error}): what is missing is asked for again", error=error))
            return None
        return row[0] if row else None

    def _write(self, replies: dict[str, str], usd: float) -> bool:
        """All or nothing, and whether it was all."""
        rows = [(key, sealed(key, text)) for key, text in replies.items()]
        try:
            with self._db:
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)
                if usd:
                    self._db.execute(ADD_SPENT, (usd,))
        except sqlite3.Error as error:
            self._works = False
            self._fail(_("can't be written ({error}): new replies stay in memory until the command ends", error=error))
            return False
        return True

    def _fail(self, what: str) -> None:
        """Say it, and don't wait for another process's lock a second time."""
        self._tell(what)
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")

    def _disbelieve(self) -> None:
        self._tell("holds entries that Noesis on this machine did not write: they are asked for again")

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            say(_("  the reply cache {path} {what}", path=self._path, what=what))


@contextmanager
def open_cache(path: Path) -> Iterator[ReplyCache]:
    """A cache that is closed at the end of the block."""
    cache = ReplyCache(path)
    try:
        yield cache
    finally:
        cache.close()
