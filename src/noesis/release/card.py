"""The model card that travels with the merged model: what it was made of, what was measured, what it must not be taken for."""

from __future__ import annotations

from typing import Any


def model_card(name: str, base: str, licence: str, manifest: dict[str, Any]) -> str:
    """Markdown with the Hub's front matter."""
    identity, stages = manifest["identity"], manifest["stages"]
    plan, judge = stages.get("plan", {}).get("result", {}), stages.get("judge", {}).get("result", {})
    preference = judge.get("preference", {})
    lines = [
        "---",
        f"base_model: {'HuggingFaceTB/SmolLM2-135M-Instruct' if base == 'smollm2' else base}",
        f"license: {'apache-2.0' if licence == 'Apache-2.0' else 'other'}",
        "language: [pt, en]",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {name}",
        "",
        f"A fine-tune of {base} by Constitutional AI, made with Noesis {manifest['noesis']}: QLoRA on revised answers, the adapter merged into the",
        "base as it was trained against it (dequantised NF4 weights where the base was quantised).",
        "",
        "| | |",
        "|---|---|",
        f"| examples | {plan.get('rows', '?')}, sha256 {identity['dataset_sha256'][:16]} |",
        f"| constitution | sha256 {identity['constitution_sha256'][:16]} |",
        f"| configuration | sha256 {identity['config_sha256'][:16]} |",
        f"| base revision | {identity['revision']} |",
        f"| epochs, rank | {plan.get('epochs', '?')}, {plan.get('r', '?')} |",
    ]
    if preference:
        b, t = preference["base"], preference["tuned"]
        lines += [
            f"| held-out loss | {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f} |",
            f"| preference accuracy | {b['preference_accuracy']:.2f} → {t['preference_accuracy']:.2f} on {preference['examples']} held-out examples |",
        ]
    trial = stages.get("trial", {})
    court = (trial["result"] if trial.get("status") == "done" else judge).get("court", {})
    lines += [
        f"| Tribunal | {court.get('verdict', 'UNDECIDED')}: {court.get('reason', 'not judged')} |",
        "",
        "## Limits",
        "",
        "Trained on about a hundred examples: it has a manner, not new knowledge. It can state falsehoods with confidence and can cite works that do",
        "not exist. It is not fit to advise on health, law, money or safety. Held-out loss and preference accuracy say that training took, not that its",
        "answers are good; no judge has approved it unless the table says so.",
        "",
        f"Licence of the base: {licence}.",
        "",
    ]
    return "\n".join(lines)
