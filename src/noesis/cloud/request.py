"""The options of `modal run scripts/modal_train.py`, checked before anything starts and passed to the containers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from noesis.core.config import ModalSection
from noesis.core.console import command, shell_command
from noesis.core.errors import UsageError
from noesis.core.i18n import _, spoken
from noesis.core.overrides import Overrides
from noesis.llm.addresses import is_loopback
from noesis.llm.clients.spec import parse_spec
from noesis.llm.hub import is_gguf_file

METHODS = ("sft", "dpo", "sft+dpo", "distill")
LOCAL_JUDGE = "vllm:"  # a judge that the run serves for itself, on the judging GPU
MAX_GPUS = 8  # of one container
MAX_NODES = 32  # of one cluster, as Modal documents it; its machines are whole ones

Part = Literal["all", "test", "merge"]


TRAIN_SCRIPT, EXPORT_SCRIPT = "scripts/modal_train.py", "scripts/export_for_modal.py"  # of a checkout


def modal_run(*options: str, detach: bool = False) -> str:
    """`modal run scripts/modal_train.py OPTIONS` where that script lies, else the same by the installed package."""
    what = (TRAIN_SCRIPT,) if Path(TRAIN_SCRIPT).is_file() else ("-m", "noesis.cloud.app")
    return shell_command("modal", "run", *(["--detach"] if detach else []), *what, *options)


def export_command() -> str:
    """The command that exports the project's examples."""
    return f"python {EXPORT_SCRIPT}" if Path(EXPORT_SCRIPT).is_file() else command("data", "export")


@dataclass(frozen=True)
class CloudRequest:
    """One `modal run`, as plain values: it travels to the containers as JSON.

    epochs: None as other settings: what the YAML file says
    what: the whole run, or with `test` only the judging, with `merge` only the merge
    judges: as typed after --judge, `vllm:MODEL` included
    nodes: machines that train together, each with `gpus`
    shards: machines that share the trial's answers
    judge_problem: why the judges can't judge, for the verdict; the trial is then not held and not paid for
    uploaded: hashes of train and eval as exported where the command was typed; None: nothing was exported there
    seconds: quoted for each function; None: nothing was quoted
    prices: in USD a second, of Modal's own rates; None: those of the dated list
    language: what the containers speak, to whoever follows their log
    turn: when the orchestrator started the call that gets this, in Unix time
    """

    epochs: int | None = None
    what: Part = "all"
    model: str | None = None
    method: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    nodes: int = 1
    max_usd: float | None = None
    max_minutes: float | None = None
    max_examples: int | None = None
    resume: bool = False
    fresh: bool = False
    gguf: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    judge_secret: str | None = None
    shards: int = 1
    gate: bool = False
    judge_problem: str | None = None
    uploaded: dict[str, str] | None = None
    seconds: dict[str, float] | None = None
    prices: dict[str, float] | None = None
    language: str = "en"
    turn: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CloudRequest:
        return cls(**{**value, "gguf": tuple(value["gguf"]), "judges": tuple(value["judges"])})

    @property
    def served_judges(self) -> tuple[str, ...]:
        """The models that the run itself serves as judges."""
        return tuple(spec.removeprefix(LOCAL_JUDGE) for spec in self.judges if spec.startswith(LOCAL_JUDGE))

    @property
    def remote_judges(self) -> tuple[str, ...]:
        """The judges at an address."""
        return tuple(spec for spec in self.judges if not spec.startswith(LOCAL_JUDGE))

    @property
    def overrides(self) -> Overrides:
        """What the options set in the configuration."""
        return Overrides(
            model=self.model,
            method=self.method,
            epochs=self.epochs,
            max_examples=self.max_examples,
            max_usd=self.max_usd,
            max_minutes=self.max_minutes,
        )


def request_from_options(
    section: ModalSection,
    *,
    epochs: int | None = None,
    test_only: bool = False,
    merge_only: bool = False,
    model: str | None = None,
    method: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
    max_examples: int | None = None,
    resume: bool = False,
    fresh: bool = False,
    gguf: str | None = None,
    judge: str | None = None,
    judge_secret: str | None = None,
    shards: int = 1,
    gate: bool = False,
) -> CloudRequest:
    """The options of the command line as a request.

    Raises:
        UsageError: a value that can't work, or two that contradict each other.
    """
    if test_only and merge_only:
        raise UsageError(_("--test-only and --merge-only exclude each other"))
    if resume and fresh:
        raise UsageError(_("--resume continues a run and --fresh starts one: give only one of them"))
    for name, number in (
        ("--epochs", epochs),
        ("--shards", shards),
        ("--gpus", gpus),
        ("--nodes", nodes),
        ("--max-usd", max_usd),
        ("--max-minutes", max_minutes),
        ("--max-examples", max_examples),
    ):
        if number is not None and number <= 0:
            raise UsageError(_("{name} {number:g}: it must be above 0", name=name, number=number))
    if gpus is not None and gpus > MAX_GPUS:
        raise UsageError(_("--gpus {gpus}: one container has at most {max_gpus} GPUs", gpus=gpus, max_gpus=MAX_GPUS))
    if nodes is not None and nodes > 1:
        _check_nodes(nodes, gpu, gpus, training=not (test_only or merge_only))
        gpus = MAX_GPUS
    if method is not None and method not in METHODS:
        raise UsageError(_("--method {method!r}: choose {methods}", method=method, methods=", ".join(METHODS)))
    if (test_only or merge_only) and (resume or fresh or method):
        raise UsageError(
            _("--resume, --fresh and --method are for training; --test-only and --merge-only train nothing")
        )
    if is_gguf_file(model or section.model):
        raise UsageError(
            _(
                "--model {model}: a file of this machine is not in the cloud; "
                "name the model that it was made from, on the Hub",
                model=model or section.model,
            )
        )
    judges = () if judge == "none" else tuple(judge.split(",")) if judge else section.judges
    for spec in judges:
        check_judge(spec)
    if len(served := [spec for spec in judges if spec.startswith(LOCAL_JUDGE)]) > 1:
        raise UsageError(
            _(
                "--judge: the GPU has room for one {local_judge} model; name {one!r} or {other!r}, "
                "and other judges by their address",
                local_judge=LOCAL_JUDGE,
                one=served[0],
                other=served[1],
            )
        )
    return CloudRequest(
        epochs=epochs,
        what="test" if test_only else "merge" if merge_only else "all",
        model=model or section.model,
        method=method,
        gpu=gpu,
        gpus=gpus,
        nodes=nodes or 1,
        max_usd=max_usd,
        max_minutes=max_minutes,
        max_examples=max_examples,
        resume=resume,
        fresh=fresh,
        gguf=tuple(dict.fromkeys(gguf.split(","))) if gguf else (),
        judges=judges,
        judge_secret=judge_secret or section.judge_secret,
        shards=shards,
        gate=gate,
        language=spoken(),
    )


def _check_nodes(nodes: int, gpu: str | None, gpus: int | None, *, training: bool) -> None:
    """Refuse a cluster that Modal does not have: its machines are whole ones."""
    if not training:
        raise UsageError(_("--nodes is for training; --test-only and --merge-only train nothing"))
    if nodes > MAX_NODES:
        raise UsageError(
            _("--nodes {nodes}: a cluster has at most {max_nodes} machines", nodes=nodes, max_nodes=MAX_NODES)
        )
    name, _ignored, count = (gpu or "").partition(":")
    if not name:
        raise UsageError(_("--nodes {nodes}: name the card, for example  --nodes {nodes} --gpu H100", nodes=nodes))
    if {int(count or MAX_GPUS), gpus or MAX_GPUS} != {MAX_GPUS}:
        raise UsageError(
            _(
                "--nodes {nodes}: a machine of a cluster has all {max_gpus} GPUs of its host; leave --gpus out, or "
                "take fewer GPUs in one machine, without --nodes",
                nodes=nodes,
                max_gpus=MAX_GPUS,
            )
        )


def check_judge(spec: str) -> None:
    """Refuse a judge that no container could reach.

    Raises:
        UsageError: not one of the forms, or a file or address of this machine.
    """
    if spec.startswith(LOCAL_JUDGE):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", spec.removeprefix(LOCAL_JUDGE)):
            raise UsageError(
                _(
                    "--judge {spec!r}: name a model on the Hub, for example {local_judge}Qwen/Qwen2.5-7B-Instruct",
                    spec=spec,
                    local_judge=LOCAL_JUDGE,
                )
            )
        return
    if spec.startswith("gguf:"):
        raise UsageError(
            _(
                "--judge {spec!r}: a file of this machine is not in the cloud; "
                "use {local_judge}MODEL or openai:BASE_URL:MODEL",
                spec=spec,
                local_judge=LOCAL_JUDGE,
            )
        )
    if is_loopback(parse_spec(spec).url):
        raise UsageError(
            _(
                "--judge {spec!r}: an address of this machine is not in the cloud; "
                "use {local_judge}MODEL or an https address",
                spec=spec,
                local_judge=LOCAL_JUDGE,
            )
        )


def gpu_to_rent(request: CloudRequest, section: ModalSection) -> str | None:
    """`gpu=` of the training function where the options change it; None: the YAML file's list as it is.

    Raises:
        UsageError: --gpu and --gpus contradict each other.
    """
    if request.gpu is None and request.gpus is None:
        return None
    name, _ignored, count = (request.gpu or section.train_gpu[0]).partition(":")
    name = {"A10G": "A10"}.get(name.upper(), name)
    if count and request.gpus and int(count) != request.gpus:
        raise UsageError(_("--gpu {gpu} and --gpus {gpus} contradict each other", gpu=request.gpu, gpus=request.gpus))
    gpus = request.gpus or int(count or 1)
    return name if gpus == 1 else f"{name}:{gpus}"


def most_gpus(names: Sequence[str]) -> int:
    """GPUs in the largest of these machines: `["L40S:2", "H100"]` → 2."""
    return max(int(name.partition(":")[2] or 1) for name in names)
