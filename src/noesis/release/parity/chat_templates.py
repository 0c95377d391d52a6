"""Does llama.cpp render conversations as the model's own chat template does? Tested on its
server, since that is what answers in use."""

from __future__ import annotations

import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from noesis.core.errors import MissingExtra, ModelError
from noesis.core.messages import Message
from noesis.llm.http import Http
from noesis.llm.http_reply import HttpError, parse_json
from noesis.llm.tokenizer import DATE
from noesis.release.gguf.vocabulary import adds_bos
from noesis.release.parity.certificate import TemplateCheck

RENDER_S = 30.0  # of one conversation
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
    address = str(server.listening_address)
    http = Http(address, {"Authorization": f"Bearer {key}"}, timeout_s=RENDER_S)
    bos = tokenizer.special["bos_token"] if adds_bos(tokenizer) else ""
    different, compared = [], 0
    today, fixed = datetime.now().strftime("%d %b %Y"), DATE.strftime("%d %b %Y")
    for conversation in CONVERSATIONS:
        try:
            ours = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        except ModelError:
            continue
        compared += 1
        theirs = _render_in_llama(http, address, conversation).replace(today, fixed)
        if theirs.removeprefix(bos) != ours.removeprefix(bos):
            different.append({"model": ours, "llama.cpp": theirs})
    http.close()
    del server
    return TemplateCheck(compared, len(different), tuple(different[:1]))


def _render_in_llama(http: Http, address: str, conversation: list[Message]) -> str:
    body: dict[str, Any] = {"messages": conversation}
    try:
        reply = http.request("POST", f"{address}/apply-template", body, deadline_s=RENDER_S)
    except HttpError as error:
        raise ModelError(f"llama.cpp renders no conversation: {error}") from None
    if reply.status != 200:  # llama.cpp's template engine refuses what the model's own renders
        return f"llama.cpp refuses: {reply.message[:500]}"
    return str(parse_json(reply.body)["prompt"])
