"""SFT on the engine, in this process; under torchrun, on this process's share of each step."""

from __future__ import annotations

from importlib.util import find_spec

from noesis.training.backends.trl_run import run_trainer
from noesis.training.job import TrainJob, TrainResult


class EngineSft:
    """The engine: each step's sequences are packed into rows."""

    name = "engine"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return engine_refusal(job)

    def train(self, job: TrainJob) -> TrainResult:
        from noesis.training.backends.engine_trainer import build_engine_trainer

        return run_trainer(job, build_engine_trainer)


def engine_refusal(job: TrainJob) -> str | None:
    """Why the engine can't train the job, so that transformers' own layers do; None if it can."""
    config, setup, cuda = job.config, job.plan.setup, job.device.kind == "cuda"
    if setup.precision == "nf4" and config.lora.quantization.bnb_4bit_quant_type != "nf4":
        return f"bnb_4bit_quant_type in lora_config.yaml is {config.lora.quantization.bnb_4bit_quant_type}"
    if cuda and setup.compute_dtype != "bfloat16":
        return f"it computes in bfloat16, this plan in {setup.compute_dtype}"
    if cuda and find_spec("triton") is None:
        return "the package triton is not installed"
    from noesis.training.engine.model import unsupported_reason

    return unsupported_reason(job.model_folder, config.lora.target_modules, kernels=cuda)
