"""One message of a conversation, as in the OpenAI protocol."""

from __future__ import annotations

Message = dict[str, str]
