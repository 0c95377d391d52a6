"""How help shows values: `RUN`, not `RUN <path>`; `at least 1`, not `x>=1`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from noesis.core.i18n import _


class PlainCommand(TyperCommand):
    """A command whose arguments are shown by their names alone, and whose numbers have their range in words."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, which show themselves plainly."""
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperArgument) and param.metavar:
                param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
            elif isinstance(param, TyperOption):
                words = _range(param.min, param.max)
                param._get_number_range_help_str = lambda words=words: words  # type: ignore[method-assign, misc]
        return params


def show_plainly(app: typer.Typer) -> None:
    """Let all commands of `app` be shown plainly."""
    for command in app.registered_commands:
        command.cls = PlainCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            show_plainly(group.typer_instance)


def _range(low: float | None, high: float | None) -> str | None:
    if low is None:
        return None if high is None else _("at most {high:g}", high=high)
    return _("at least {low:g}", low=low) if high is None else _("{low:g} to {high:g}", low=low, high=high)
