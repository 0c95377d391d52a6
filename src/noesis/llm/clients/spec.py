"""How a model is named on the command line: openai:BASE_URL:MODEL, gguf:PATH, torch:NAME or self."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from noesis.core.errors import UsageError


@dataclass(frozen=True)
class ModelSpec:
    """A `--judge` as given."""

    kind: str  # openai, gguf, self
    model: str
    url: str = ""

    @property
    def name(self) -> str:
        return Path(self.model).name if self.kind == "gguf" else self.model


_OPENAI = re.compile(r"openai:(https?://(?:\[[0-9a-fA-F:]+\]|[^/:\s]+)(?::\d+)?(?:/[^:\s]*)?):(\S+)")


def parse_spec(text: str, option: str = "--judge") -> ModelSpec:
    """A judge as named on the command line, with `option`.

    Raises:
        UsageError: it is none of the forms.
    """
    if text == "self":
        return ModelSpec("self", "self")
    if match := _OPENAI.fullmatch(text):
        return ModelSpec("openai", match[2], match[1].rstrip("/"))
    if text.startswith("gguf:") and len(text) > 5:
        path = Path(text[5:]).expanduser()
        if not path.is_file():
            raise UsageError(f"{option} {text}: {path} does not exist")
        return ModelSpec("gguf", str(path))
    raise UsageError(
        f"{option} {text!r} is not understood: use openai:BASE_URL:MODEL (openai:https://api.openai.com/v1:gpt-5-mini), gguf:PATH, or self"
    )


def same_model(judge: str, judged: str) -> bool:
    """Whether two names mean one model, as far as names tell: no folder, no file ending, no quantisation."""
    return _bare(judge) == _bare(judged)


def _bare(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    return re.sub(r"[-.](?:f16|f32|bf16|i?q\d\w*|fp8|awq|gptq)$", "", last)
