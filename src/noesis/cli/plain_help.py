"""How help shows itself: in the spoken language; `RUN`, not `RUN <path>`; `at least 1`, not `x>=1`.

Help stands in the definitions of commands and options, in English; `make messages` gathers it from there.
"""

from __future__ import annotations

import gettext
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from noesis.core.i18n import _
from noesis.core.i18n.catalogue import DOMAIN, FOLDER


class _Plain:
    """What commands and groups of them have in common."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.help: str | None = self.help and _(self.help)
        self.options_metavar: str | None = self.options_metavar and _(self.options_metavar)
        for param in self.params:  # type: ignore[attr-defined]
            if isinstance(param, TyperArgument | TyperOption) and param.help:
                param.help = _(param.help)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, shown by their names alone, and numbers with their range in words."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if isinstance(param, TyperArgument) and param.metavar:
                param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
            elif isinstance(param, TyperOption):
                words = _range(param.min, param.max)
                param._get_number_range_help_str = lambda words=words: words  # type: ignore[method-assign, misc]
        return params

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.help = _(str(option.help))
        return option

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the line that begins with `Usage: `."""
        pieces = self.collect_usage_pieces(ctx)  # type: ignore[attr-defined]
        formatter.write_usage(ctx.command_path, " ".join(pieces), prefix=_("Usage: "))


class PlainCommand(_Plain, TyperCommand):
    """A command whose help is plain."""


class PlainGroup(_Plain, TyperGroup):  # type: ignore[misc]
    """A group of commands whose help is plain."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.subcommand_metavar = _(self.subcommand_metavar)


def show_plainly(app: typer.Typer) -> None:
    """Let all commands of `app` be shown plainly, with typer's own words from the catalogue."""
    gettext.bindtextdomain(DOMAIN, FOLDER)
    gettext.textdomain(DOMAIN)
    app.info.cls = PlainGroup
    for command in app.registered_commands:
        command.cls = PlainCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            show_plainly(group.typer_instance)


def _range(low: float | None, high: float | None) -> str | None:
    if low is None:
        return None if high is None else _("at most {high:g}", high=high)
    return _("at least {low:g}", low=low) if high is None else _("{low:g} to {high:g}", low=low, high=high)
