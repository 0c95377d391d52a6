from __future__ import annotations

from noesis.core.text import counted


def test_counts_in_messages_agree_with_their_noun():
    assert [counted(n, "row") for n in (0, 1, 1024)] == ["0 rows", "1 row", "1,024 rows"]
