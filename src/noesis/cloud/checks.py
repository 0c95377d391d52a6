"""What a run on Modal can't have, refused where the command is typed, before anything is built, started or paid for."""

from __future__ import annotations

from pathlib import Path

from noesis.cloud.request import CloudRequest
from noesis.core.config import TrainingFile
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.machine.folders import expanded
from noesis.core.project import Project

MOUNTED = ("/data", "/weights")  # the two volumes, in every container


def check_request(project: Project, training: TrainingFile, request: CloudRequest) -> None:
    """Check the kinds of GGUF, the model, and the files and trackers that training_config.yaml names.

    Raises:
        UsageError: one of them can't work in a container; the message says what to do.
    """
    _check_gguf(request)
    if request.model is not None:
        _check_model(request.model)
    if training.report_to:
        raise UsageError(
            _(
                "training_config.yaml, report_to: {report_to} is not in the containers: set "
                "report_to: []  for runs on Modal",
                report_to=", ".join(training.report_to),
            )
        )
    if request.what == "all":
        if training.on_pairs and training.dpo.pairs is not None:
            _check_file(project, "dpo.pairs", training.dpo.pairs)
        if training.on_rows and training.replay.rows_file is not None:
            _check_file(project, "replay.file", training.replay.rows_file)


def _check_gguf(request: CloudRequest) -> None:
    from noesis.release.gguf.quantize import KINDS

    for kind in request.gguf:
        if kind not in KINDS:
            raise UsageError(_("--gguf {kind!r} is not known; choose from {kinds}", kind=kind, kinds=", ".join(KINDS)))


def _check_model(model: str) -> None:
    folder = expanded(model)
    if folder.is_absolute() and any(folder.is_relative_to(place) for place in MOUNTED):
        return
    if folder.is_dir() or model.startswith(("/", "~", ".")):
        raise UsageError(
            _(
                "--model {model!r} is a folder of this machine, which no container has: copy it to the volume with  "
                "modal volume put VOLUME {model} /models/{name}  and name it as  --model /data/models/{name}",
                model=model,
                name=folder.name,
            )
        )


def _check_file(project: Project, key: str, name: str) -> None:
    """Containers have the project's `data`, without its exports, at another place than here."""
    data, file = (project.root / "data").resolve(), (project.root / name).resolve()
    remedy = _(
        "copy it to data/ and name it relative to the project, for example  {key}: data/{name}",
        key=key,
        name=Path(name).name,
    )
    if not file.is_file():
        raise UsageError(_("training_config.yaml, {key}: there is no file {file}", key=key, file=file))
    if Path(name).is_absolute():
        raise UsageError(
            _(
                "training_config.yaml, {key}: {name} is a path of this machine, which no container has: {remedy}",
                key=key,
                name=name,
                remedy=remedy,
            )
        )
    if not file.is_relative_to(data) or file.is_relative_to(project.exports.resolve()):
        raise UsageError(
            _(
                "training_config.yaml, {key}: {name} does not reach the containers, which get data/: {remedy}",
                key=key,
                name=name,
                remedy=remedy,
            )
        )
