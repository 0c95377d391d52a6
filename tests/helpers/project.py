"""This checkout, and the files of a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from noesis.core.project import Project

ROOT = Path(__file__).resolve().parents[2]


SMALL = {  # in training_config.yaml: what is measured of a trained adapter, made less
    r"^  grid: .*": "  grid: [0.5, 1.0]",
    r"^  pairs: 8\b": "  pairs: 4",
    r"^  items: 24\b": "  items: 4",
    r"^  answers: 4\b": "  answers: 2",
    r"^  answer_tokens: 32\b": "  answer_tokens: 8",
    r"^  kept_items: 160\b": "  kept_items: 9",
}


def with_small_settings(root: Path) -> Path:
    """The project in `root`, whose runs measure each strength on less."""
    file = root / "data" / "training" / "training_config.yaml"
    text = file.read_text(encoding="utf-8")
    for pattern, line in SMALL.items():
        text, found = re.subn(pattern, line, text, flags=re.M)
        assert found == 1, f"{pattern} is in it {found} times"
    file.write_text(text, encoding="utf-8")
    return root


def small_project_in(folder: Path) -> Project:
    """A copy of this checkout's project with 40 of its examples, so that scoring stays short."""
    shutil.copytree(ROOT / "data", folder / "data")
    with_small_settings(folder)
    for file in (folder / "data" / "training").glob("philosophical*/*.jsonl"):
        lines = file.read_bytes().split(b"\n")[:2]
        file.write_bytes(b"\n".join(lines) + b"\n")
    return Project(folder)


TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def constitution_lines() -> list[str]:
    """What small tokenizers are trained on: the constitution without the requests, which grow with every edit."""
    lines = (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8").splitlines()
    return [
        line for line in lines if not line.startswith(("      pt: ", "      en: ", "    critique:", "    revision:"))
    ]


def make_tokenizer_files(folder: Path) -> None:
    """A byte-level BPE tokenizer cut as SmolLM2's (digits apart), trained on the constitution, with a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(constitution_lines(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 2048}), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def example_record() -> dict:
    """A valid example with the nine required fields and nothing else."""
    return {
        "id": "x_001",
        "category": "maieutica",
        "prompt": "O que é a coragem, afinal?",
        "response_initial": "Coragem é não ter medo de nada.",
        "critique": "Veritas: falso, quem não teme nada é temerário.",
        "response_revised": "Quem nada teme não precisa de coragem; ela aparece quando o medo existe e a razão decide mesmo assim.",
        "reasoning": "A revisão distingue coragem de ausência de medo.",
        "values_applied": ["verdade", "sabedoria"],
        "difficulty": "easy",
    }
