"""`Message`: one message of a conversation, as in the OpenAI protocol and in chat templates."""

from __future__ import annotations

Message = dict[str, str]  # role (system, user or assistant) and content
