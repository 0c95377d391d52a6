"""The commands of the set-up guide, and settings that make its run short."""

from __future__ import annotations

GUIDE = """
modal volume create noesis-training-data
python scripts/export_for_modal.py
modal volume put noesis-training-data data/training/exports /dataset
modal secret create huggingface-token HF_TOKEN=hf_accepted
modal volume list
modal volume ls noesis-training-data /dataset
modal run scripts/modal_train.py --epochs 1
modal run scripts/modal_train.py --epochs 3
modal run scripts/modal_train.py --test-only
modal run scripts/modal_train.py --merge-only
modal app logs noesis-philosophical-training
modal app stats noesis-philosophical-training
mkdir -p model_output
modal volume get noesis-training-data /merged/noesis-philosopher-v1 ./model_output
"""


SMALLER = {  # in training_config.yaml and lora_config.yaml of the clone: shorter runs, nothing else
    r"^  answers: \d+": "  answers: 1",
    r"^  max_new_tokens: \d+": "  max_new_tokens: 8",
    r"^  quantizations: .*": "  quantizations: [f16]",
    r"^  judges: .*": "  judges: []",
    r"^save_every: \S+": "save_every: 1 steps",
    r"^  eval_examples: \d+": "  eval_examples: 3",
    r"^r: \d+": "r: 4",
    r"^lora_alpha: \d+": "lora_alpha: 8",
}
