"""Does llama.cpp render conversations as the model's own chat template does? Tested on its
server, since that is what answers in use."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from noesis.core.errors import MissingExtra, ModelError
from noesis.core.messages import Message
from noesis.llm.tokenizer_worker import DATE
from noesis.release.gguf.vocabulary import adds_bos
from noesis.release.parity.certificate import TemplateCheck

SYSTEM = "Você é Noesis. Diga a verdade.\n"
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "O que é a coragem?"}],
    [{"role": "user", "content": "  What is courage?  \n"}],
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "É 1936 ou 2024?"}],
    [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Is it true? 😀"},
        {"role": "assistant", "content": " Perhaps.\n\n"},
        {"role": "user", "content": "Por quê?\n```py\nx = 1\n```"},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "<b>c</b> & 'd'"},
    ],
]


def compare_renderings(file: Path, tokenizer: Any) -> TemplateCheck:
    """Render conversations of several shapes with llama.cpp and with the model's own template.

    A conversation that the model's own template refuses (for its system prompt, say) is not compared. A BOS at the
    start is left out on both sides: the server adds it to the ids, not to the text.

    Raises:
        ModelError: llama.cpp can't load the file or its template.
    """
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "gguf") from None
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 256, 1, False
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.offline, params.ui, params.verbosity = True, False, 0
    key = secrets.token_urlsafe(24)
    params.api_keys = [key]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp can't serve {file}: {error}") from None
    bos = tokenizer.special["bos_token"] if adds_bos(tokenizer) else ""
    different, compared = [], 0
    today, fixed = datetime.now().strftime("%d %b %Y"), DATE.strftime("%d %b %Y")
    for conversation in CONVERSATIONS:
        try:
            ours = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        except ModelError:
            continue
        compared += 1
        theirs = _render_in_llama(server.listening_address, key, conversation).replace(today, fixed)
        if theirs.removeprefix(bos) != ours.removeprefix(bos):
            different.append({"model": ours, "llama.cpp": theirs})
    del server
    return TemplateCheck(compared, len(different), tuple(different[:1]))


def _render_in_llama(address: str, key: str, conversation: list[Message]) -> str:
    request = urllib.request.Request(  # noqa: S310  (an address of this process)
        f"{address}/apply-template",
        data=json.dumps({"messages": conversation}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return str(json.loads(reply.read())["prompt"])
    except urllib.error.HTTPError as error:  # llama.cpp's template engine refuses what the model's own renders
        return f"llama.cpp refuses: {error.read(500).decode(errors='replace')}"
