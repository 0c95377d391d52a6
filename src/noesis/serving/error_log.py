"""What goes wrong below the request handlers: counted for `GET /metrics`, and told in one line at most each minute.

aiohttp and asyncio print a traceback for each malformed request, with the line that they could not parse, which may be
the one with the key; and anyone, without a key, could fill the disk. A line names the kind of error and its place only.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import Any

from noesis.core.console import say
from noesis.core.i18n import _
from noesis.serving.metrics import Metrics

EVERY_S = 60.0


class ErrorLog(logging.Handler):
    """The handler of `logger`, which aiohttp gets as its own, and of a loop's unhandled errors."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics, self._untold, self._told_at = metrics, 0, -EVERY_S
        self.logger = logging.Logger("noesis.serving", level=logging.WARNING)  # of its own: no other handler hears it
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.count(record.exc_info[1] if record.exc_info else None)

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For `loop.set_exception_handler`."""
        self.count(context.get("exception"))

    def count(self, error: BaseException | None) -> None:
        """Count an error, and say so if nothing was said for a while."""
        self._metrics.internal_errors += 1
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at >= EVERY_S:
            say(
                _(
                    "  {untold} malformed or failed since the last such line; the last one: {kind_and_place}",
                    untold=self._untold,
                    kind_and_place=_kind_and_place(error),
                )
            )
            self._untold, self._told_at = 0, now


def _kind_and_place(error: BaseException | None) -> str:
    if error is None:
        return "unknown"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place
