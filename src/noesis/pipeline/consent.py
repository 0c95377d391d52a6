"""What a run's own settings may set in motion: a run directory may come from a stranger.

Its judges are asked, and its base model is downloaded, only if the user named them too: on the command line or in the
project's own settings. Otherwise the terminal is asked, and without one the command ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noesis.core.config import Config, TribunalSection, load_config
from noesis.core.console import command, require_consent
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.project import Project, find_project
from noesis.llm.addresses import host_and_port
from noesis.llm.clients.spec import READ_KINDS, parse_spec
from noesis.llm.embedded import Model
from noesis.llm.hub import find_local_model, find_model


def tribunal_settings(config: Config, project: Project) -> TribunalSection:
    """The run's settings; those of how judges are called and what they cost are the project's of today.

    A price of 0 in a stranger's run would switch a cap off.
    """
    return config.training.tribunal.called_as(load_config(project).training.tribunal)


def judges_to_ask(path: Path, config: Config, given: Sequence[str] | None, project: Path | None) -> tuple[str, ...]:
    """The judges of `noesis judge RUN`: those named with --judge, else those that the run was made with.

    Args:
        path, config: of the run.
        project: as given with --project.

    Raises:
        UsageError: only the run's settings name one, and the user does not agree to it.
    """
    if given or not config.training.tribunal.judges:
        return tuple(given or ())
    own = load_config(find_project(project)).training.tribunal.judges
    for text in config.training.tribunal.judges:
        spec = parse_spec(text, kinds=READ_KINDS)
        if spec.kind == "self" or text in own:
            continue
        host = host_and_port(spec.url)
        does = (
            _("prompts, answers and your key for {host} go to {host}", host=host)
            if host
            else _("the file {model} is loaded", model=spec.model)
        )
        require_consent(
            _(
                "{path} names the judge {text}, which your project does not: {does}",
                path=path / "config.json",
                text=text,
                does=does,
            ),
            _(
                "if that is what you want, name it yourself:  {command}",
                command=command("judge", path, "--judge", text),
            ),
        )
    return config.training.tribunal.judges


def base_model(path: Path, config: Config, *, fetch: bool) -> Model:
    """The base model of a run; converted if needed, and downloaded if the user has named it or agrees.

    Args:
        path, config: of the run.
        fetch: download it without asking.

    Raises:
        UsageError: it would have to be downloaded, only the run names it, and the user does not agree.
        ModelError: as `find_model`.
    """
    name, revision = config.training.model, config.training.revision
    if (found := find_local_model(name, revision)) is not None:
        return found
    if not fetch and name not in _own_models():
        require_consent(
            _(
                "{path} names the base model {name}, which is not on this machine and not your "
                "project's: it is downloaded from the Hugging Face Hub",
                path=path / "config.json",
                name=name,
            ),
            _("if that is what you want, fetch it yourself:  hf download {name}", name=name)
            + (_(" --revision {revision}", revision=revision) if revision else ""),
        )
    return find_model(name, revision)


def _own_models() -> tuple[str, ...]:
    """The models that the project at or above the working directory names; none where there is no project."""
    try:
        training = load_config(find_project()).training
    except UsageError:
        return ()
    return training.model, training.demo.model, training.modal.model
