"""What an application needs to use the model: `noesis connect RUN --target env|python|docker`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from noesis.core.console import command, shell_word
from noesis.llm.addresses import is_loopback

TARGETS = ("env", "python", "docker")


@dataclass(frozen=True)
class Endpoint:
    """Where the model is served."""

    base_url: str
    model: str
    key: str | None  # None: it is in NOESIS_API_KEY already, and is not printed
    question: str = "O que é a coragem?"  # asked in the example


def instructions(target: str, endpoint: Endpoint) -> str:
    """Text to paste into a shell, a program, or a container's command line; values are quoted accordingly.

    Args:
        target: one of TARGETS.
    """
    return {"env": _env, "python": _python, "docker": _docker}[target](endpoint)


def _env(e: Endpoint) -> str:
    key = shell_word(e.key) if e.key else '"$NOESIS_API_KEY"'
    url = shell_word(e.base_url)
    return "\n".join(
        [
            f"export OPENAI_BASE_URL={url}",
            f"export OPENAI_API_KEY={key}",
            f"export NOESIS_BASE_URL={url}",
            f"export NOESIS_API_KEY={key}",
            f"export NOESIS_MODEL={shell_word(e.model)}",
        ]
    )


def _python(e: Endpoint) -> str:
    key = repr(e.key) if e.key else 'os.environ["NOESIS_API_KEY"]'
    return f"""import os

from openai import OpenAI

client = OpenAI(base_url={e.base_url!r}, api_key={key})
messages = [{{"role": "user", "content": {e.question!r}}}]
answer = client.chat.completions.create(model={e.model!r}, messages=messages)
print(answer.choices[0].message.content)"""


def _docker(e: Endpoint) -> str:
    """A container reaches its host by a special name, not loopback: the server must listen on `--host 0.0.0.0`."""
    url = e.base_url
    if is_loopback(url):
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        url = parts._replace(netloc=f"host.docker.internal{port}").geturl()
    values = {"OPENAI_BASE_URL": url, "NOESIS_BASE_URL": url, "NOESIS_MODEL": e.model}
    flags = [f"  -e {name}={shell_word(value)} \\" for name, value in values.items()]
    if e.key:
        keys = [f"  -e {name}={shell_word(e.key)} \\" for name in ("NOESIS_API_KEY", "OPENAI_API_KEY")]
    else:
        keys = ["  -e NOESIS_API_KEY \\", '  -e OPENAI_API_KEY="$NOESIS_API_KEY" \\']
    serve = command("serve", "RUN", "--host", "0.0.0.0")  # noqa: S104  (a command that is shown)
    note = [f"# the server must listen on more than loopback:  {serve}"] if url != e.base_url else []
    return "\n".join(
        [
            *note,
            "docker run --rm \\",
            "  --add-host=host.docker.internal:host-gateway \\",
            *flags,
            *keys,
            "  YOUR_IMAGE",
        ]
    )
