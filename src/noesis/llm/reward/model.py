"""A reward model in memory: conversations packed into rows, hidden states pooled, one scalar each.

Two kinds load alike: what `noesis tribunal train-judge` made (`folder.py`), and sequence-classification models with one
label (Skywork-Reward-V2 and its like), from safetensors and by their own chat template, without their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from noesis.core.errors import ModelError, TrainingError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.llm.causal_model import library_errors, load_causal_model, put_adapter
from noesis.llm.chat_template import break_controls, encode, render
from noesis.llm.hub import find_model
from noesis.llm.model_config import check_model_folder
from noesis.llm.reward.folder import HEAD_FILE, JudgeFolder, find_judges_base
from noesis.llm.token_rows import IGNORED
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer

Tensor = Any
Conversation = tuple[Sequence[Message], str]  # messages, and the answer to them
ROW_TOKENS = 2048  # of several conversations in one row; transformers keeps them apart by their positions


class RewardModel:
    """Scores answers.

    Args:
        backbone: layers without an output layer; called as transformers' models are.
        head: (1, H) float32.
        tokens: the ids of a conversation, and where its answer begins.
        longest: tokens of a conversation at most.
    """

    def __init__(
        self, backbone: Any, head: Tensor, tokens: Any, *, pool: Literal["last", "mean"], longest: int
    ) -> None:
        self.backbone, self.head, self.tokens, self.pool, self.longest = backbone, head, tokens, pool, longest
        self.device = next(backbone.parameters()).device

    def rewards(self, conversations: Sequence[Conversation]) -> list[float]:
        """One number for each conversation, of any size; higher is better.

        Raises:
            ModelError: a conversation is longer than the model's context.
        """
        found: list[float] = (self.pooled(conversations) @ self.head.T)[:, 0].tolist()
        return found

    def pooled(self, conversations: Sequence[Conversation]) -> Tensor:
        """The pooled hidden state of each answer: (conversations, H) float32, in main memory.

        Raises:
            ModelError: a conversation is longer than the model's context.
        """
        rows = [self.tokens(list(messages), answer) for messages, answer in conversations]
        if longer := [len(ids) for ids, _ in rows if len(ids) > self.longest]:
            raise ModelError(
                _(
                    "a conversation has {longer:,} tokens, and the reward model reads {longest:,}",
                    longer=longer[0],
                    longest=self.longest,
                )
            )
        found = torch.zeros(len(rows), self.head.shape[1])
        for group in _packed([len(row[0]) for row in rows]):
            states = self._states([rows[i][0] for i in group])
            for i, part in zip(group, states, strict=True):
                found[i] = part[-1] if self.pool == "last" else part[rows[i][1] :].mean(0)
        return found

    def _states(self, sequences: list[list[int]]) -> list[Tensor]:
        """Hidden states of each sequence after the last norm, float32: (length, H)."""
        lengths = [len(ids) for ids in sequences]
        with torch.inference_mode():
            states = self.backbone(
                input_ids=torch.tensor([[i for ids in sequences for i in ids]], device=self.device),
                position_ids=torch.tensor([[i for n in lengths for i in range(n)]], device=self.device),
                use_cache=False,
            ).last_hidden_state[0]
        return list(states.float().cpu().split(lengths))


def load_judge(judge: JudgeFolder, base: str | None = None) -> RewardModel:
    """The reward model in a folder, unmerged on its base; on a GPU if there is one.

    Args:
        base: as in `find_judges_base`.

    Raises:
        ModelError: its base is not here, or a file is damaged.
    """
    from safetensors.torch import load_file

    found = find_judges_base(judge, base)
    model, tokenizer = load_causal_model(found.path, dtype=_dtype()), load_tokenizer(found.path)
    with library_errors(_("can't load {path}", path=judge.path / HEAD_FILE)):
        head = load_file(judge.path / HEAD_FILE)["weight"].float()
    if head.shape != (1, model.config.hidden_size) or not bool(torch.isfinite(head).all()):
        raise ModelError(
            _(
                "{path} is not the head of a model that is {hidden_size} wide",
                path=judge.path / HEAD_FILE,
                hidden_size=model.config.hidden_size,
            )
        )
    if judge.has_adapter:
        model = put_adapter(model, judge.path).get_base_model()
    return of_causal_model(model, tokenizer, head, pool=judge.record.pool, layers=judge.record.layers)


def of_causal_model(
    model: Any, tokenizer: ChatTokenizer, head: Tensor, *, pool: Literal["last", "mean"], layers: int | None = None
) -> RewardModel:
    """`model` with `head` in place of its output layer.

    Args:
        layers: only its first, and the last norm after them; None: all.

    Raises:
        ModelError: it has fewer.
    """
    if layers is not None:
        if layers > len(model.base_model.layers):
            raise ModelError(
                _(
                    "the base has {layers} layers, and the reward model reads {needed}",
                    layers=len(model.base_model.layers),
                    needed=layers,
                )
            )
        model.base_model.layers = model.base_model.layers[:layers]
        model.config.num_hidden_layers = layers

    def tokens(messages: list[Message], answer: str) -> tuple[list[int], int]:
        *messages, last = break_controls(tokenizer, [*messages, {"role": "assistant", "content": answer}])
        try:
            row = encode(tokenizer, messages, last["content"], name="answer")
        except TrainingError as error:
            raise ModelError(str(error)) from None
        return row.input_ids, next(i for i, label in enumerate(row.labels) if label != IGNORED)

    model = model.to(_device()).eval()
    return RewardModel(model.base_model, head, tokens, pool=pool, longest=_context(model))


def load_classifier(name: str) -> tuple[RewardModel, str]:
    """(a sequence-classification model with one label, its revision), from a folder or the Hub.

    Raises:
        ModelError: there is none of that name, or it is another kind of model.
    """
    found = find_model(name)
    check_model_folder(found.path)
    model = _sequence_classifier(found.path)
    tokenizer = load_tokenizer(found.path)

    def tokens(messages: list[Message], answer: str) -> tuple[list[int], int]:
        """The whole conversation as its template ends it: such models are trained to read the last token."""
        safe = break_controls(tokenizer, [*messages, {"role": "assistant", "content": answer}])
        ids = list(
            tokenizer(render(tokenizer, safe, add_generation_prompt=False), add_special_tokens=False)["input_ids"]
        )
        return ids, 0

    head = model.score.weight.detach().float().cpu()
    backbone = getattr(model, model.base_model_prefix)
    return RewardModel(backbone, head, tokens, pool="last", longest=_context(model)), found.revision


def _sequence_classifier(folder: Path) -> Any:
    from noesis.core.libraries import quiet_libraries

    quiet_libraries()
    from transformers import AutoModelForSequenceClassification

    with library_errors(_("can't load {folder} as a reward model", folder=folder)):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=_dtype(),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.out_features != 1:
        raise ModelError(
            _(
                "{folder} is no reward model: it needs a linear head `score` with one label and no bias "
                "(a …ForSequenceClassification with num_labels 1)",
                folder=folder,
            )
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            _(
                "{folder} is no reward model: it lacks {missing!r} (a model that writes has no such head)",
                folder=folder,
                missing=missing[0],
            )
        )
    return model.to(_device()).eval()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> Any:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _context(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or ROW_TOKENS)


def _packed(lengths: list[int]) -> list[list[int]]:
    """Indices of the conversations that share a row: at most ROW_TOKENS, or one longer than that."""
    rows: list[list[int]] = []
    used = ROW_TOKENS
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if used + lengths[i] > ROW_TOKENS:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += lengths[i]
    return rows
