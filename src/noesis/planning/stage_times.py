"""Seconds of the stages after training. Fitted to SmolLM2 on two cores of an AMD EPYC and on an H100 with 16 cores
(2026-11); for models ten times larger right within a factor of two (`benchmarks/README.md` has the misses)."""

from __future__ import annotations

from noesis.planning.search import PlanningTask
from noesis.planning.speed import cpu_tokens_per_second, load_seconds

FORWARD_SPEED = 2.4  # of scoring a row over training on it, on a CPU
FORWARD_LAUNCH = 2.4e-3  # seconds per layer and scored row, on a GPU
CHOOSE_START, JUDGE_START = {"cpu": 6.0, "cuda": 2.5}, {"cpu": 6.0, "cuda": 1.0}
# llama.cpp with a model of 134.5 M weights on two cores: tokens a second of four answers at once, and of prompts.
ANSWER_RATE, PROMPT_RATE, RATED_WEIGHTS, RATED_CORES = 190.0, 400.0, 134.5e6, 2
MOST_CORES = 8  # that answering gains from: it is bound by memory
PROMPT_TOKENS = 430  # of a prompt with the system prompt
DECODE_START, DECODE_LAUNCH = 1.0, 1.0e-4  # of a batch on a GPU, seconds; per token and layer
DECODE_TRAFFIC = 1.5  # bytes moved per byte of the weights and token
MERGED_LOAD = 3e-9  # seconds per weight to read and merge a model before it answers on a GPU
MERGE_SERIAL, MERGE_PARALLEL = 8e-9, 52e-9  # seconds per weight, and times cores
CERTIFY_START = 12.0  # strings, templates, audits
CERTIFIED_TOKENS = 2100  # compared in each file, answers included
WRITE_SECONDS = 20e-9  # per weight and file
REFERENCES = 2  # models in float32 that files are compared with: the adapter on its base, and the merged one
LLAMA_FLOPS, REFERENCE_FLOPS = 100e9, 60e9  # reached on RATED_CORES
REFERENCE_START, GPU_REFERENCE_START = 16.0, 3.0  # seconds: loading, greedy answers
REFERENCE_LOAD = 10e-9  # seconds per weight to read one onto a GPU


def choose_seconds(task: PlanningTask, *, epochs: int) -> float:
    """Scoring both answers of every held-out example with the base and with each epoch's adapter."""
    rows: int = 2 * task.config.training.data.eval_examples
    mean = task.work.tokens / len(task.work.lengths)
    passes, kind = epochs + 1, task.device.kind
    if kind == "cuda":
        row = max(FORWARD_LAUNCH * task.shape.layers, 2 * task.shape.parameters * mean / task.gpu.half)
        return CHOOSE_START[kind] + load_seconds(task.shape, rented=task.rented) + passes * rows * row
    rate = FORWARD_SPEED * cpu_tokens_per_second(task.shape, task.adapter_weights, task.device, task.cpu_flops)
    return CHOOSE_START[kind] + load_seconds(task.shape, rented=False) + passes * rows * mean / rate


def judge_seconds(task: PlanningTask) -> float:
    """Answers of base and tuned model to held-out prompts."""
    tribunal, shape = task.config.training.tribunal, task.shape
    if not tribunal.answers:
        return 0.0
    if task.device.kind == "cuda":
        token = DECODE_LAUNCH * shape.layers + DECODE_TRAFFIC * 2 * shape.parameters / task.gpu.bandwidth
        model = DECODE_START + load_seconds(shape, rented=task.rented) + MERGED_LOAD * shape.parameters
        return JUDGE_START["cuda"] + 2 * (model + tribunal.max_new_tokens * token)
    speed = RATED_WEIGHTS / shape.parameters / RATED_CORES
    answering = tribunal.max_new_tokens / (ANSWER_RATE * speed * min(task.device.threads, MOST_CORES))
    reading = PROMPT_TOKENS / (PROMPT_RATE * speed * task.device.threads)
    return JUDGE_START["cpu"] + load_seconds(shape, rented=False) + 2 * tribunal.answers * (answering + reading)


def merge_seconds(task: PlanningTask, cores: float) -> float:
    """Merging the adapter on a CPU, and reading the result back."""
    return task.shape.parameters * (MERGE_SERIAL + MERGE_PARALLEL / cores)


def gguf_seconds(task: PlanningTask, cores: float, *, on_gpu: bool) -> float:
    """Writing the GGUF files and their certificate. llama.cpp computes on the CPU, the reference on a GPU if it may."""
    weights, files = task.shape.parameters, len(task.config.training.gguf.quantizations)
    flops, more_cores = CERTIFIED_TOKENS * 2 * weights, (cores / RATED_CORES) ** 0.5
    compared: float = files * (flops / (LLAMA_FLOPS * more_cores) + WRITE_SECONDS * weights)
    reference: float = REFERENCE_START + flops / (REFERENCE_FLOPS * more_cores)
    if on_gpu:
        reference = GPU_REFERENCE_START + REFERENCE_LOAD * weights
    return CERTIFY_START + compared + REFERENCES * reference
