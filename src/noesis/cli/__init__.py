"""The command line: `noesis …`. Each command imports its stage when it is called, so that `--help` is quick.

`run_command` is the one boundary where errors become messages and exit codes: 0 done (`noesis judge`: APPROVED),
1 failed, 2 usage, 3 REJECTED, 4 CONDITIONAL or UNDECIDED, 5 stopped at the cap, 130 (Ctrl-C) and 143 (SIGTERM)
interrupted, 141 nobody reads the output any more. Ctrl-C and SIGTERM are handled in `core/signals.py`.
"""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from noesis import __version__
from noesis.cli import (
    cloud_commands,
    data_commands,
    pipeline_commands,
    release_commands,
    result_commands,
    serving_commands,
    shell_commands,
    synthesis_commands,
    tribunal_commands,
    verify_commands,
    workspace_commands,
)
from noesis.cli.options import speak_as_asked
from noesis.cli.plain_help import show_plainly
from noesis.core.console import complain, guard_terminal, quoted, report_error, say
from noesis.core.i18n import _, retold
from noesis.core.machine.streams import NO_READER, OutputClosed, has_no_reader, settle_streams, silence

app = typer.Typer(
    help="Turn a constitution and about a hundred examples into a small language model that keeps to them.\n\n"
    "Example: noesis demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(pipeline_commands.app)
app.add_typer(release_commands.app)
app.add_typer(result_commands.app)
app.add_typer(serving_commands.app)
app.add_typer(verify_commands.app)
app.add_typer(workspace_commands.app)
app.add_typer(shell_commands.app)
app.add_typer(data_commands.app, name="data")
app.add_typer(tribunal_commands.app, name="tribunal")
app.add_typer(synthesis_commands.app, name="constitution")
app.add_typer(cloud_commands.app, name="cloud")
app.add_typer(shell_commands.config_app, name="config")
show_plainly(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    lang: Annotated[
        str | None,
        typer.Option(
            "--lang",
            metavar="CODE",
            help="Speak pt or en, here or after the command; default: $NOESIS_LANG, else the locale.",
        ),
    ] = None,
) -> None:
    context.obj = app
    if version:
        say(_("noesis {version}", version=__version__))
        raise typer.Exit()


def main() -> None:
    """Run the command line and exit; every foreseeable failure ends in one message and an exit code."""
    from noesis.core.signals import leave_process

    leave_process(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    from noesis.core.files import explain_error, explain_os_error
    from noesis.core.libraries import silence_libraries
    from noesis.core.signals import Terminated, raise_terminated
    from noesis.llm.addresses import spare_loopback_from_proxies

    settle_streams()
    silence_libraries()
    spare_loopback_from_proxies()
    guard_terminal()
    signal.signal(signal.SIGTERM, raise_terminated)
    shell_commands.prepare_completion()
    try:
        arguments = speak_as_asked(arguments)
        code = app(arguments, standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this code and prints nothing
            raise KeyboardInterrupt
        return int(code) if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        complain(_("stopped; finished work is kept, and the same command continues from there"))
        return 130
    except TyperException as error:  # a wrong command, option or value
        if isinstance(error.message, str):  # type: ignore[attr-defined]
            error.message = quoted(error.message.replace("Value error, ", ""))  # type: ignore[attr-defined]
        shown = io.StringIO()
        error.show(shown)  # type: ignore[attr-defined]
        for line in shown.getvalue().rstrip("\n").split("\n"):
            complain(retold(line))
        return 2
    except Terminated:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        complain(_("stopped by SIGTERM; finished work is kept, and the same command continues from there"))
        return 143
    except OutputClosed:
        return NO_READER
    except SystemExit as stopped:  # typer's silent answer to any broken pipe, in its own output or in our work
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        if has_no_reader(sys.__stdout__ or sys.stdout):
            silence(sys.__stdout__ or sys.stdout)
            return NO_READER
        report_error(explain_os_error(stopped.__context__))
        return 1
    except Exception as error:
        failure = explain_error(error)
        if failure is None:
            raise
        report_error(failure)
        return failure.exit_code
