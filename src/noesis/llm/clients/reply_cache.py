"""Replies by content hash in one SQLite file: stopped work continues where it stopped, and nothing is paid for twice.

Only whole replies are stored; a request that failed is made again next time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.files import make_folder
from noesis.llm.clients.protocol import ModelReply


class ReplyCache:
    """A key-value store of JSON values; each `put` is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        # intact after a kill or a power cut, though a cut may lose the last few replies
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")

    def get(self, key: str) -> Any | None:
        """The stored JSON value, None if there is none."""
        row = self._db.execute("SELECT value FROM replies WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, value: Any) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?)",
            (key, json.dumps(value, ensure_ascii=False, allow_nan=False)),
        )

    def put_all(self, values: dict[str, Any]) -> None:
        """Store several values, all or none."""
        self._db.execute("BEGIN")
        try:
            for key, value in values.items():
                self.put(key, value)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def reply(self, key: str) -> ModelReply | None:
        """A stored reply, marked as cached: it was paid for before."""
        stored = self.get(key)
        if stored is None:
            return None
        tops = tuple(tuple((token, p) for token, p in each) for each in stored.pop("alternatives", ()))
        return ModelReply(**stored, cached=True, top_logprobs=tops)

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

    def close(self) -> None:
        self._db.close()


@contextmanager
def open_cache(path: Path) -> Iterator[ReplyCache]:
    """A cache that is closed at the end of the block."""
    cache = ReplyCache(path)
    try:
        yield cache
    finally:
        cache.close()
