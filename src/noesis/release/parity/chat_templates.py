"""Does llama.cpp render conversations as the model's own chat template does? Tested on its
server, since that is what answers in use."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.llm.isolated.llama_process import LlamaProcess
from noesis.llm.isolated.tokenizer_worker import DATE
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
    settings: dict[str, Any] = {
        "model": {"path": str(file)},
        "n_ctx": 256,
        "n_parallel": 1,
        "warmup": False,
    }
    try:
        server = LlamaProcess(settings)
    except ModelError as error:
        raise ModelError(_("llama.cpp can't serve {file}: {error}", file=file, error=error)) from None
    bos = tokenizer.special["bos_token"] if adds_bos(tokenizer) else ""
    different, compared = [], 0
    today, fixed = datetime.now().strftime("%d %b %Y"), DATE.strftime("%d %b %Y")
    for conversation in CONVERSATIONS:
        try:
            ours = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        except ModelError:
            continue
        compared += 1
        theirs = _render_in_llama(server, conversation).replace(today, fixed)
        if theirs.removeprefix(bos) != ours.removeprefix(bos):
            different.append({"model": ours, "llama.cpp": theirs})
    server.close()
    return TemplateCheck(compared, len(different), tuple(different[:1]))


def _render_in_llama(server: LlamaProcess, conversation: list[Message]) -> str:
    answer = server.post("/apply-template", {"messages": conversation})
    if isinstance(answer, dict) and "prompt" in answer:
        return str(answer["prompt"])
    return f"llama.cpp refuses: {str(answer)[:500]}"  # its template engine refuses what the model's own renders
