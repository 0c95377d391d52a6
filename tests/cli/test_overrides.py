"""One option, one setting: the command line, Modal, the demo and the package come to the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noesis.cli import run_command
from noesis.cloud import entrypoint
from noesis.cloud.container import stages
from noesis.cloud.container.workspace import ContainerContext
from noesis.cloud.request import request_from_options
from noesis.core.config import Config, ModalSection, load_config
from noesis.core.overrides import Overrides
from noesis.core.project import Project

Options = dict[str, Any]


class Captured(Exception):
    """Ends a command where its configuration is known."""


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that commands came to; each command ends there."""
    found: list[Config] = []

    def capture(*arguments: Any, **_: Any) -> None:
        found.extend(argument for argument in arguments if isinstance(argument, Config))
        raise Captured

    monkeypatch.setattr("noesis.api.training.start_run", capture)  # first: its import takes the next one's name
    monkeypatch.setattr("noesis.pipeline.start_run.start_run", capture)  # a container imports it when it is called
    monkeypatch.setattr("noesis.api.training.plan_without_run", capture)
    monkeypatch.setattr("noesis.pipeline.demo.from_sources", capture)
    monkeypatch.setattr("noesis.dataset.export.export", capture)
    monkeypatch.setattr("noesis.dataset.inspect.show", capture)
    monkeypatch.setattr(entrypoint, "quote_lines", capture)
    monkeypatch.setattr(stages, "require_upload", lambda *_: None)
    return found


def command(name: str) -> Callable[[Project, Options], object]:
    """A `noesis` command as an entrance: options in, whatever it ends with out."""

    def enter(project: Project, options: Options) -> object:
        words = [word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", str(value))]
        return run_command([*name.split(), *words, "--project", str(project.root)])

    return enter


def modal_run(project: Project, options: Options) -> None:
    entrypoint.run_from_terminal(
        project,
        ModalSection(),
        lambda *_: pytest.fail(),
        deploy_judge=pytest.fail,
        deploy_nodes=pytest.fail,
        dry_run=True,
        options=options,
    )


def container(project: Project, options: Options) -> None:
    """The training container, which gets the request as JSON."""
    context = ContainerContext(project.training, project, lambda: None, lambda: None, lambda: None)
    (project.training / "dataset").symlink_to(project.exports)
    try:
        stages._open_run(context, request_from_options(ModalSection(), **options), "ticket")
    finally:
        (project.training / "dataset").unlink()


TRAIN = {"train": command("train"), "modal run": modal_run, "container": container}
CLI = TRAIN | {"plan": command("plan")}
DEMO = {"demo": command("demo")}
DATA = {"data export": command("data export"), "data inspect": command("data inspect")}


@pytest.mark.parametrize("yaml_method", ["sft", "dpo", "sft+dpo"])
@pytest.mark.parametrize(
    ("options", "entrances", "settings"),
    [
        ({"model": "org/my-model"}, CLI, {"training.model": "org/my-model"}),
        ({"method": "sft"}, CLI, {"training.method": "sft"}),
        ({"method": "sft+dpo", "epochs": 5}, CLI, {"training.method": "sft+dpo", "training.num_train_epochs": 5}),
        ({"method": "dpo", "epochs": 1}, CLI, {"training.method": "dpo", "training.dpo.epochs": 1}),
        ({"epochs": 7}, CLI, {"sft": "training.num_train_epochs", "dpo": "training.dpo.epochs", "": 7}),
        ({"max_examples": 9}, CLI, {"max_examples": 9}),
        ({"max_usd": 3.5}, TRAIN | DEMO, {"training.budget.max_usd": 3.5}),
        ({"max_minutes": 45.0}, TRAIN | DEMO, {"training.budget.max_minutes": 45.0}),
        ({"language": "both"}, DATA | DEMO, {"training.data.language": "both"}),
    ],
)
def test_an_option_means_the_same_everywhere(
    options: Options,
    entrances: dict[str, Callable[[Project, Options], object]],
    settings: dict[str, Any],
    yaml_method: str,
    project: Path,
    captured: list[Config],
):
    found = Project(project)
    text = found.training_yaml.read_text(encoding="utf-8").replace("\nmethod: sft", f"\nmethod: {yaml_method}")
    found.training_yaml.write_text(text, encoding="utf-8")
    assert load_config(found).training.method == yaml_method
    if "" in settings:  # the key goes by the method
        settings = {settings["dpo" if yaml_method == "dpo" else "sft"]: settings[""]}
    for name, enter in entrances.items():
        captured.clear()
        with pytest.raises(Captured):
            enter(found, options)
        (config,) = captured
        given = load_config(found, settings)
        if name in ("modal run", "container") and "model" not in options:  # its default model is Modal's
            given = load_config(found, settings | {"training.model": ModalSection().model})
        if name in DEMO:
            given = demo_settings(found, settings, yaml_method)
        assert config == given, name
        assert Overrides(**options).configure(found) == load_config(found, settings)


def demo_settings(project: Project, settings: dict[str, Any], method: str) -> Config:
    """What `demo:` of training_config.yaml sets, by hand."""
    demo = load_config(project).training.demo
    return load_config(
        project,
        {"training.model": demo.model, "training.data.language": demo.language}
        | settings
        | {"training.tribunal.kept_items": demo.kept_items}
        | ({} if method == "dpo" else {"training.learning_rate": demo.learning_rate}),
    )


def test_a_quick_demo_trains_one_epoch_by_any_method(project: Path, captured: list[Config]):
    found = Project(project)
    for method in ("sft", "dpo"):
        text = found.training_yaml.read_text(encoding="utf-8").replace("\nmethod: sft", f"\nmethod: {method}")
        found.training_yaml.write_text(text, encoding="utf-8")
        with pytest.raises(Captured):
            run_command(["demo", "--quick", "--project", str(project)])
        assert captured.pop().training.epochs == 1


def test_every_override_reaches_a_setting(project: Path):
    values = {
        "model": "m", "method": "dpo", "epochs": 1, "max_examples": 2, "learning_rate": 1e-6, "language": "en",
        "max_usd": 1.0, "max_minutes": 2.0, "ask": "both", "kept_items": 3, "strength": 0.5, "kl_weight": 0.5,
        "seeds": 2,
    }  # fmt: skip
    assert values.keys() == Overrides.__dataclass_fields__.keys()
    for name, value in values.items():
        for method in ("sft", "dpo", "sft+dpo"):
            assert list(Overrides(**{name: value}).settings(method).values()) == [value]
    assert Overrides().settings("sft") == {}
