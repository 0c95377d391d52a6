"""The model card that travels with the merged model: what it was made of, what was measured, what it must not be taken for.

A fine-tune of a Llama carries Llama in its name and Meta's notice (Llama 3.1 Community License, 1.b.i).
"""

from __future__ import annotations

from typing import Any

LLAMA_NOTICE = (
    "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)


def llama_release(base: str) -> str | None:
    """`Llama 3.1` of a base that is under one of Meta's licences, None for others."""
    words = base.rsplit("/", 1)[-1].lower().replace("_", "-")
    for release in ("3.3", "3.2", "3.1"):
        if f"llama-{release}" in words:
            return f"Llama {release}"
    if "llama-3" in words:
        return "Llama 3"
    return "Llama 2" if "llama-2" in words else None


def display_name(name: str, base: str) -> str:
    """The model's name, beginning with Llama where its licence asks for that."""
    return f"Llama-{name}" if llama_release(base) and not name.lower().startswith("llama") else name


def model_card(name: str, base: str, licence: str, manifest: dict[str, Any]) -> str:
    """Markdown with the Hub's front matter."""
    identity, stages = manifest["identity"], manifest["stages"]
    plan, judge = stages.get("plan", {}).get("result", {}), stages.get("judge", {}).get("result", {})
    preference, llama = judge.get("preference", {}), llama_release(base)
    lines = [
        "---",
        f"base_model: {'HuggingFaceTB/SmolLM2-135M-Instruct' if base == 'smollm2' else base}",
        *_licence_lines(licence, llama),
        "language: [pt, en]",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {display_name(name, base)}",
        "",
        *([f"Built with {llama.split()[0]}.", ""] if llama else []),
        f"A fine-tune of {base} by Constitutional AI, made with Noesis {manifest['noesis']}: QLoRA on revised answers, the adapter merged into the",
        "base as it was trained against it (dequantised NF4 weights where the base was quantised). Each GGUF file was compared with it at every",
        "position of prompts in both languages; the figures are in parity.json beside it.",
        "",
        "| | |",
        "|---|---|",
        f"| examples | {plan.get('rows', '?')}, sha256 {identity['dataset_sha256'][:16]} |",
        f"| constitution | sha256 {identity['constitution_sha256'][:16]} |",
        f"| configuration | sha256 {identity['config_sha256'][:16]} |",
        f"| base revision | {identity['revision']} |",
        f"| epochs, rank | {plan.get('epochs', '?')}, {plan.get('r', '?')} |",
        *_training_lines(plan, stages.get("train", {}).get("result", {})),
    ]
    if preference:
        b, t = preference["base"], preference["tuned"]
        low, high = t["interval_95"]
        lines += [
            f"| held-out loss | {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f} nats a token |",
            f"| preference accuracy | {b['preference_accuracy']:.2f} → {t['preference_accuracy']:.2f} [{low:.2f}, {high:.2f}] on "
            f"{preference['examples']} held-out examples |",
        ]
    lines += [
        *_verdict_lines(stages, judge),
        "",
        "Intervals are 95%.",
        "",
        "## Limits",
        "",
        "Trained on about a hundred examples: it has a manner, not new knowledge. It can state falsehoods with confidence and can cite works that do",
        "not exist. It is not fit to advise on health, law, money or safety. Held-out loss and preference accuracy say that training took, not that its",
        "answers are good; no judge has approved it unless the table says so.",
        "",
        f"Licence of the base: {llama + ' Community License' if llama else licence}.",
        *(
            [
                LLAMA_NOTICE.format(name=llama),
                "Its Acceptable Use Policy holds for this model too: https://www.llama.com/llama3_1/use-policy/",
            ]
            if llama
            else []
        ),
        "",
    ]
    return "\n".join(lines)


def _licence_lines(licence: str, llama: str | None) -> list[str]:
    """The Hub's fields for a licence."""
    if llama:
        short = llama.lower().replace(" ", "")
        return [f"license: {'llama2' if short == 'llama2' else short}"]
    return [f"license: {'apache-2.0' if licence == 'Apache-2.0' else 'other'}"]


def _training_lines(plan: dict[str, Any], train: dict[str, Any]) -> list[str]:
    """How it was trained, as far as the run says."""
    lines = []
    if plan.get("precision"):
        lines.append(f"| base in training | {plan['precision']} |")
    if train.get("steps"):
        lines.append(f"| steps, loss | {train['steps']}, {train['first_loss']:.3f} → {train['final_loss']:.3f} |")
    return lines


def _verdict_lines(stages: dict[str, Any], judge: dict[str, Any]) -> list[str]:
    """The Tribunal's verdict, with the intervals behind it where a trial was held."""
    trial = stages.get("trial", {})
    held = trial.get("status") == "done"
    court = (trial["result"] if held else judge).get("court", {})
    lines = [f"| Tribunal | {court.get('verdict', 'UNDECIDED')}: {court.get('reason', 'not judged')} |"]
    if held:
        tuned = trial["result"].get("models", {}).get("tuned", {}).get("all", {})
        for key, name in (("mean", "weighted mean"), ("veritas", "Veritas"), ("sophia", "Sophia"), ("dike", "Dikē")):
            figure = tuned.get(key) or {}
            if figure.get("interval_95"):
                low, high = figure["interval_95"]
                lines.append(f"| {name} | {figure['mean']:.3f} [{low:.3f}, {high:.3f}] |")
    return lines
