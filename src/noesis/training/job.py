"""A training job and its result as plain data, and the `Backend` that carries one out. Torch-free.

`pipeline/training_set` makes the `TrainingSet`, the train stage makes the `TrainJob`, `training/trainer` chooses the
backend. A job goes to other processes as JSON: to torchrun's (`worker.py`) and to Unsloth's
(`backends/unsloth_worker.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.llm.token_rows import DistillPrompt, TokenPair, TokenRow
from noesis.planning.budget import Budget
from noesis.planning.plan import Plan
from noesis.planning.workload import PairWorkload, Workload, Workloads


@dataclass(frozen=True)
class PreferencePairs:
    """What preference training takes: pairs to train on, and pairs that are only measured."""

    train: Sequence[TokenPair]
    held_out: Sequence[TokenPair] = ()

    @property
    def tokens(self) -> int:
        """Tokens of one pass over the pairs trained on."""
        return sum(pair.tokens for pair in self.train)

    @property
    def work(self) -> PairWorkload:
        """For the planner: a pair counts as one sequence, since both its rows are in memory at once."""
        return PairWorkload(
            tuple(pair.tokens for pair in self.train),
            sum(pair.chosen.trained + pair.rejected.trained for pair in self.train),
            held_out_tokens=sum(pair.tokens for pair in self.held_out),
        )

    def to_json(self) -> dict[str, Any]:
        return {"train": [asdict(pair) for pair in self.train], "held_out": [asdict(pair) for pair in self.held_out]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PreferencePairs:
        train, held_out = (
            [
                TokenPair(pair["name"], TokenRow(**pair["chosen"]), TokenRow(**pair["rejected"]), pair["p"])
                for pair in value[part]
            ]
            for part in ("train", "held_out")
        )
        return cls(train, held_out)


@dataclass(frozen=True)
class TrainingSet:
    """What a method trains on: rows for SFT, pairs for DPO, both for `sft+dpo`, prompts for `distill`; else None."""

    rows: list[TokenRow] | None = None
    pairs: PreferencePairs | None = None
    prompts: list[DistillPrompt] | None = None

    @property
    def workloads(self) -> Workloads:
        """For the planner."""
        return Workloads(
            sft=None if self.rows is None else count_workload(self.rows),
            pairs=None if self.pairs is None else self.pairs.work,
        )

    @property
    def tokens(self) -> int:
        """Tokens of one epoch of the last part: the pairs if there are any, else the rows."""
        return self.pairs.tokens if self.pairs is not None else sum(len(row.input_ids) for row in self.rows or [])

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": None if self.rows is None else [asdict(row) for row in self.rows],
            "pairs": None if self.pairs is None else self.pairs.to_json(),
            "prompts": None if self.prompts is None else [asdict(prompt) for prompt in self.prompts],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainingSet:
        return cls(
            None if value["rows"] is None else [TokenRow(**row) for row in value["rows"]],
            None if value["pairs"] is None else PreferencePairs.from_json(value["pairs"]),
            None if value["prompts"] is None else [DistillPrompt(**prompt) for prompt in value["prompts"]],
        )


def count_sampled(prompts: Sequence[DistillPrompt], max_new_tokens: int) -> Workload:
    """The workload of self-distillation, its answers at full length."""
    student, teacher = ([len(p.student) for p in prompts], [len(p.teacher) for p in prompts])
    return sampled_workload(student, teacher, max_new_tokens)


def sampled_workload(
    student: Sequence[int], teacher: Sequence[int], max_new_tokens: int, relative_error: float = 0.0
) -> Workload:
    """student, teacher: tokens of the prompts of each; the teacher's rows are read by the base alone."""
    count = len(student)
    read = sum(teacher) + count * max_new_tokens
    lengths = tuple(n + max_new_tokens for n in student)
    return Workload(lengths, count * max_new_tokens, relative_error, anchored=read, sampled=count)


def count_workload(rows: Sequence[TokenRow]) -> Workload:
    """The exact workload of token rows."""
    return Workload(
        tuple(len(row.input_ids) for row in rows),
        sum(row.trained for row in rows),
        anchored=sum(len(row.input_ids) for row in rows if row.anchored),
    )


@dataclass(frozen=True)
class RewardHead:
    """What makes of hidden states a reward, and the loss of its pairs.

    pool: the state of the answer's last token, or the mean over the answer's
    centring: weight of the squared sum of a pair's two rewards, which keeps rewards around 0 (arXiv 2312.09244)
    """

    pool: Literal["last", "mean"] = "mean"
    centring: float = 0.0


@dataclass(frozen=True)
class OtherSeed:
    """A further adapter that is trained in the same passes: its seed, and where its adapters and metrics go."""

    seed: int
    checkpoints: Path
    metrics: Path

    def to_json(self) -> dict[str, Any]:
        return {"seed": self.seed, "checkpoints": str(self.checkpoints), "metrics": str(self.metrics)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OtherSeed:
        return cls(value["seed"], Path(value["checkpoints"]), Path(value["metrics"]))


@dataclass(frozen=True)
class TrainJob:
    """One training, complete: a backend needs nothing else.

    model_folder: the base model's config, tokenizer and safetensors
    data: rows or pairs; both only for `methods.train_run`, which makes two jobs of it
    checkpoints: folder that receives `epoch_0 …`, with saved trainer states in `resume/`
    metrics: file that receives a line a step
    budget: what may be spent; None: no cap
    parent: folder of an adapter to start from; None: a new one
    reward: train a reward model on the pairs; None: a model that writes
    others: seeds that are trained beside the configured one
    """

    model_folder: Path
    data: TrainingSet
    config: Config
    plan: Plan
    device: Device
    checkpoints: Path
    metrics: Path
    budget: Budget | None = None
    parent: Path | None = None
    reward: RewardHead | None = None
    others: tuple[OtherSeed, ...] = ()

    @property
    def rows(self) -> list[TokenRow]:
        """The rows of an SFT job."""
        if self.data.rows is None:
            raise TypeError("a job of preference training has pairs, not rows")
        return self.data.rows

    @property
    def pairs(self) -> PreferencePairs:
        """The pairs of a job of preference training."""
        if self.data.pairs is None:
            raise TypeError("an SFT job has rows, not pairs")
        return self.data.pairs

    @property
    def prompts(self) -> list[DistillPrompt]:
        """The prompts of a job of self-distillation."""
        if self.data.prompts is None:
            raise TypeError("only self-distillation has prompts")
        return self.data.prompts

    @property
    def tokens_per_epoch(self) -> int:
        """As they are; of answers that are still to be sampled, as planned."""
        return self.data.tokens if self.data.prompts is None else self.plan.tokens_per_epoch

    @property
    def resume_folder(self) -> Path:
        """Folder of the saved trainer states."""
        return self.checkpoints / "resume"

    def to_json(self) -> dict[str, Any]:
        """For another process of this machine: the budget's clock is monotonic."""
        return {
            "model_folder": str(self.model_folder),
            "data": self.data.to_json(),
            "config": self.config.model_dump(mode="json"),
            "plan": self.plan.to_json(),
            "device": self.device.to_json(),
            "checkpoints": str(self.checkpoints),
            "metrics": str(self.metrics),
            "budget": None if self.budget is None else self.budget.to_json(),
            "parent": None if self.parent is None else str(self.parent),
            "reward": None if self.reward is None else asdict(self.reward),
            "others": [other.to_json() for other in self.others],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainJob:
        return cls(
            Path(value["model_folder"]),
            TrainingSet.from_json(value["data"]),
            Config.model_validate(value["config"]),
            Plan.from_json(value["plan"]),
            Device.from_json(value["device"]),
            Path(value["checkpoints"]),
            Path(value["metrics"]),
            None if value["budget"] is None else Budget.from_json(value["budget"]),
            None if value["parent"] is None else Path(value["parent"]),
            None if value["reward"] is None else RewardHead(**value["reward"]),
            tuple(OtherSeed.from_json(other) for other in value["others"]),
        )


@dataclass(frozen=True)
class HeldOutRewards:
    """Preference training's figures on the held-out pairs after one epoch.

    reward_accuracy: share of pairs whose chosen answer has the higher reward
    reward_margin: mean reward of the chosen answer minus that of the rejected one
    loss: mean loss a token of the chosen answers
    """

    reward_accuracy: float
    reward_margin: float
    loss: float


@dataclass(frozen=True)
class HeldOutPairs:
    """How many pairs were held out, and their figures after each epoch."""

    pairs: int
    by_epoch: tuple[HeldOutRewards, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOutPairs:
        return cls(value["pairs"], tuple(HeldOutRewards(**epoch) for epoch in value["by_epoch"]))


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    tokens, seconds, tokens_per_s: of this process, not of an earlier one that it resumed from
    first_loss, final_loss: of the first and last step in metrics.jsonl; None where there is none
    peak_memory_bytes: of the GPU, or of the process on a CPU
    saves, save_seconds, save_share: trainer states saved, the time that took, and its share of the training time
    mean_training_loss: by epoch (`epoch_0` …)
    held_out: of preference training with held-out pairs
    sft: the first part of `sft+dpo`
    seeds: of the run's other seeds, by seed
    states: the saved states by their seals: folder below checkpoints/ → SHA-256 of its manifest; of early runs None
    smaller_plan: what was executed instead of the job's plan, after that ran out of memory
    """

    steps: int
    epochs: int
    tokens: int
    seconds: float
    tokens_per_s: float
    first_loss: float | None
    final_loss: float | None
    peak_memory_bytes: int
    saves: int | None = None
    save_seconds: float | None = None
    save_share: float | None = None
    threads: int | None = None
    mean_training_loss: dict[str, float | None] | None = None
    held_out: HeldOutPairs | None = None
    sft: TrainResult | None = None
    seeds: dict[str, TrainResult] | None = None
    smaller_plan: Plan | None = None
    states: dict[str, str] | None = None

    @property
    def out_of_memory_once(self) -> bool:
        """Whether the job's plan did not fit after all."""
        return self.smaller_plan is not None

    def to_json(self) -> dict[str, Any]:
        """The train stage's result in the manifest: what is unknown is left out."""
        figures = {name: value for name, value in vars(self).items() if value is not None or name in _ALWAYS_WRITTEN}
        if self.held_out is not None:
            figures["held_out"] = {
                "pairs": self.held_out.pairs,
                "by_epoch": [asdict(epoch) for epoch in self.held_out.by_epoch],
            }
        if self.sft is not None:
            figures["sft"] = self.sft.to_json()
        if self.seeds is not None:
            figures["seeds"] = {seed: result.to_json() for seed, result in self.seeds.items()}
        if self.smaller_plan is not None:
            figures["smaller_plan"] = self.smaller_plan.to_json()
        return figures | {"out_of_memory_once": self.out_of_memory_once}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainResult:
        known = {name: item for name, item in value.items() if name in cls.__dataclass_fields__}
        for name, read in (
            ("held_out", HeldOutPairs.from_json),
            ("sft", TrainResult.from_json),
            ("seeds", lambda seeds: {seed: TrainResult.from_json(result) for seed, result in seeds.items()}),
            ("smaller_plan", Plan.from_json),
        ):
            if known.get(name) is not None:
                known[name] = read(known[name])
        return cls(**known)


_ALWAYS_WRITTEN = ("first_loss", "final_loss")


class Backend(Protocol):
    """A way to carry out a job: on the engine, by transformers, by Unsloth, on several GPUs (`training/backends/`)."""

    name: str

    def refusal_reason(self, job: TrainJob) -> str | None:
        """Why this backend can't or should not run the job; None if it can. Imports torch at most, loads no weights."""

    def train(self, job: TrainJob) -> TrainResult:
        """Train, and leave `epoch_0 …` in `job.checkpoints` and a line a step in `job.metrics`.

        A job that was stopped resumes from the newest intact state in `job.resume_folder`.

        Raises:
            TrainingError: a loss that is not finite (nothing of that step was applied), or a process that failed.
            CapError: another step would exceed the budget; the last one is saved.
            KeyboardInterrupt, Terminated: a stop was requested; the last whole step is saved.
            torch.cuda.OutOfMemoryError: the GPU's memory is too small for the job's plan.
        """
