"""Checks finished answers against their schemas, in a child process: what a client sends stalls nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

from noesis.core.errors import ModelError
from noesis.llm.isolated.child import Child
from noesis.serving.protocol import ApiError

SECONDS = 2.0  # for one answer; a linear pattern of the largest size may take longer
START_S = 60.0  # for the child to be there
MEMORY = 1_000_000_000  # bytes


class AnswerChecker:
    """One child for all requests, started with the first schema, and again when a check overstepped its limits."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._turn = asyncio.Lock()

    async def require_checkable(self, schema: dict[str, Any]) -> None:
        """Raises ApiError (400) where a pattern of `schema` can't be searched for."""
        await self._ask(schema, None)

    async def require_valid(self, schema: dict[str, Any], text: str) -> None:
        """Raises ApiError: 422 where `text` breaks `schema`, 400 where that can't be told in time."""
        if problem := await self._ask(schema, text):
            message = f"the answer breaks its schema: {problem}; ask again, or ask for less"
            raise ApiError(422, message, code="json_validate_failed", param="response_format")

    async def _ask(self, schema: dict[str, Any], text: str | None) -> str | None:
        async with self._turn:
            if self._child is None or not self._child.running:
                self._child = await asyncio.to_thread(Child, "noesis.serving.schema_rules", memory=MEMORY)
                await asyncio.to_thread(self._child.ask, "the check", START_S, schema={}, text=None)
            try:
                found: str | None = await asyncio.to_thread(
                    self._child.ask, "the check", SECONDS, schema=schema, text=text
                )
            except ModelError as error:
                why = str(error) if self._child.running else "to check an answer against the schema takes too long"
                raise ApiError(400, f"{why}: simplify its patterns", param="response_format") from None
            return found

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
