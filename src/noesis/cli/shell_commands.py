"""`noesis completion`, `config schema`, `agent-docs`: what shells, editors and assistants need to know of Noesis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from noesis.cli.options import ProjectOption

COMPLETE = "_NOESIS_COMPLETE"  # environment variable by which a shell's script asks for completions

app = typer.Typer()
config_app = typer.Typer(
    help="The two YAML files: their schema, for editors.\n\nExample: noesis config schema", no_args_is_help=True
)


def prepare_completion() -> None:
    """Let typer answer a shell that asks for completions, if this process was started by one."""
    if COMPLETE in os.environ:
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # registers the shells


@app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script by which a shell completes commands and options.

    bash: noesis completion bash >> ~/.bashrc

    zsh: noesis completion zsh >> ~/.zshrc  (below compinit)

    fish: noesis completion fish > ~/.config/fish/completions/noesis.fish

    Example: noesis completion bash >> ~/.bashrc
    """
    from typer._completion_shared import get_completion_script

    from noesis.core.console import say_text

    say_text(get_completion_script(prog_name="noesis", complete_var=COMPLETE, shell=shell))


@app.command("agent-docs")
def agent_docs(context: typer.Context) -> None:
    """Print what an assistant needs to drive Noesis: rules, tried recipes, stages, commands, exit codes.

    Example: noesis agent-docs > AGENTS.md
    """
    from typer.main import get_command

    from noesis.cli.reference.agents import agent_docs as text
    from noesis.core.console import say_text
    from noesis.core.i18n import speak

    speak("en")  # an assistant's text is one, and so are its commands
    say_text(text(get_command(context.find_root().obj)))


@config_app.command()
def schema(
    file: Annotated[
        Literal["training", "lora"] | None,
        typer.Argument(metavar="FILE", help="training or lora: print the JSON Schema of that file."),
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Print the JSON Schema of a YAML file; without FILE, write both beside the project's files, where editors look.

    The first line of each file names its schema: `# yaml-language-server: $schema=…`.

    Example: noesis config schema training
    """
    from noesis.core.config.schema import json_schema, write_schemas
    from noesis.core.console import print_json, say
    from noesis.core.project import find_project

    if file is not None:
        print_json(json_schema(file))
        return
    for written in write_schemas(find_project(project)):
        say(f"  {_shown(written)}")


def _shown(path: Path) -> str:
    from noesis.core.console import path_here

    return path_here(path)
