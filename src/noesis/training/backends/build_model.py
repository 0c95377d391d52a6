"""The model that a job trains: on the engine where it takes the job, else on transformers' own layers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from noesis.core.console import say
from noesis.core.i18n import _, retold
from noesis.training.distributed import is_main_process, local_rank
from noesis.training.job import TrainJob


def build_model(job: TrainJob) -> Any:
    """The PEFT model on this process's device; `model.engine` computes its losses."""
    from noesis.training.base_model import lora_config

    config, plan = job.config, job.plan
    refusal = engine_refusal(job)
    if refusal is None:
        from noesis.training.engine.model import build

        return build(
            job.model_folder,
            plan.setup,
            lora_config(config, job.model_folder),
            f"cuda:{local_rank()}" if job.device.kind == "cuda" else "cpu",
            sharded=plan.sharded,
            double_quant=config.lora.quantization.bnb_4bit_use_double_quant,
        )
    if job.device.kind == "cuda" and is_main_process():
        say(_("  trained on transformers' layers, which is slower than the engine: {refusal}", refusal=retold(refusal)))
    from noesis.training import transformers_model

    return transformers_model.build(job.model_folder, plan.setup, config, job.device, longest=plan.longest_row)


def engine_refusal(job: TrainJob) -> str | None:
    """Why the engine can't train the job, so that transformers' own layers do; None if it can."""
    config, setup, cuda = job.config, job.plan.setup, job.device.kind == "cuda"
    if setup.precision == "nf4" and config.lora.quantization.bnb_4bit_quant_type != "nf4":
        return _(
            "bnb_4bit_quant_type in lora_config.yaml is {bnb_4bit_quant_type}",
            bnb_4bit_quant_type=config.lora.quantization.bnb_4bit_quant_type,
        )
    if cuda and setup.compute_dtype != "bfloat16":
        return _("it computes in bfloat16, this plan in {compute_dtype}", compute_dtype=setup.compute_dtype)
    if cuda and find_spec("triton") is None:
        return _("the package triton is not installed")
    from noesis.training.engine.model import unsupported_reason

    return unsupported_reason(job.model_folder, config.lora.target_modules, kernels=cuda)
