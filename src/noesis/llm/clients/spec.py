"""How a model is named on the command line, `--judge SPEC`, `--model SPEC`, `--critic SPEC`:

openai:BASE_URL:MODEL   an endpoint that speaks OpenAI's protocol (openai:https://api.openai.com/v1:gpt-5-mini)
gguf:PATH               a GGUF file, in a process of its own
torch:NAME              smollm2, a model folder or a Hub name, in this process; it writes, and judges with --ask score
self                    the run's own base as judge, which the report then says
reward:NAME             a reward model: its folder (PATH, or PATH@BASE where its base is elsewhere) or a Hub name;
                        `noesis tribunal calibrate` measures it, `tribunal: reward` in the settings gives it a seat
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from noesis.core.errors import UsageError
from noesis.core.i18n import N_, _
from noesis.core.machine.folders import expanded
from noesis.llm.addresses import check_url, without_password

Kind = Literal["openai", "gguf", "torch", "self", "reward"]
JUDGE_KINDS: tuple[Kind, ...] = ("openai", "gguf", "self")
READ_KINDS: tuple[Kind, ...] = ("openai", "gguf", "torch", "self")  # of judges that write nothing
WRITER_KINDS: tuple[Kind, ...] = ("openai", "gguf", "torch")
FORMS: dict[Kind, str] = {
    "openai": "openai:BASE_URL:MODEL (openai:https://api.openai.com/v1:gpt-5-mini)",
    "gguf": "gguf:PATH",
    "torch": N_("torch:NAME (smollm2, a model folder, a Hub name)"),
    "self": "self",
    "reward": N_("reward:NAME (the folder of a reward model, or a Hub name)"),
}
# the user and password that some put there are matched, so that they are refused and not read as host or model
_OPENAI = re.compile(
    r"openai:(https?://(?:[^/@]*@)?(?:\[[^\]/]*\]|[^/:]+)(?::\d+)?(?:/[^:]*)?):(.+)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class ModelSpec:
    """A model as named on the command line.

    model: the endpoint's name of it, a path, or a name that `find_model` knows
    url: of an endpoint, without a slash at its end
    """

    kind: Kind
    model: str
    url: str = ""

    @property
    def name(self) -> str:
        return Path(self.model).name if self.kind == "gguf" else self.model


def parse_spec(text: str, option: str = "--judge", kinds: tuple[Kind, ...] = JUDGE_KINDS) -> ModelSpec:
    """The model that `text` names.

    Args:
        option: where it was given, for messages.
        kinds: those allowed there.

    Raises:
        UsageError: it has none of the allowed forms, or its file does not exist.
    """
    spec = _parse(text)
    if spec is None or spec.kind not in kinds:
        if spec is not None and spec.kind == "torch":
            raise UsageError(
                _(
                    "{option} {text}: a judge that quotes writes structured verdicts, which torch: can't; "
                    "name a gguf: file or an endpoint, or have it read with --ask score",
                    option=option,
                    text=text,
                )
            )
        if spec is not None and spec.kind == "reward":
            raise UsageError(
                _(
                    "{option} {text}: a reward model gives one number and quotes nothing, so it fills no criterion; "
                    "seat it beside the judges with  tribunal: reward: {{path, role}}  in training_config.yaml",
                    option=option,
                    text=text,
                )
            )
        *most, last = (FORMS[kind] for kind in kinds)
        raise UsageError(
            _(
                "{option} {without_password!r} is not understood: use {most}, or {last}",
                option=option,
                without_password=without_password(text),
                most=", ".join(most),
                last=last,
            )
        )
    if spec.kind == "openai":
        url = check_url(spec.url, option).removesuffix("/chat/completions").rstrip("/")
        if not spec.model.isprintable() or spec.model != spec.model.strip():
            raise UsageError(
                _(
                    "{option} {text!r}: the model's name holds control characters or begins with a space",
                    option=option,
                    text=text,
                )
            )
        return replace(spec, url=url)
    if spec.kind == "gguf" and not Path(spec.model).is_file():
        raise UsageError(_("{option} {text}: {model} does not exist", option=option, text=text, model=spec.model))
    return spec


def _parse(text: str) -> ModelSpec | None:
    if text == "self":
        return ModelSpec("self", "self")
    if match := _OPENAI.fullmatch(text):
        return ModelSpec("openai", match[2], match[1])
    kind, _, rest = text.partition(":")
    if kind == "gguf" and rest:
        return ModelSpec("gguf", str(expanded(rest)))
    if kind == "reward" and rest:
        return ModelSpec("reward", rest)
    return ModelSpec("torch", rest) if kind == "torch" and rest else None


def same_model(judge: str, judged: str) -> bool:
    """Whether two names denote the same model, ignoring folder, file ending and quantisation."""
    return _bare(judge) == _bare(judged)


def _bare(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    return re.sub(r"[-.](?:f16|f32|bf16|i?q\d\w*|fp8|awq|gptq)$", "", last)
