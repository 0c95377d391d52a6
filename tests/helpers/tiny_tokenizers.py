"""Tiny stand-ins for the tokenizers and chat templates of five families of models, built here in a second.

The templates are written anew with the structure of the real ones: where a system prompt goes, what is trimmed, what is refused, what
follows the end of a turn. The tokenizers cut text as the real ones do (bytes, or pieces with bytes as a last resort), with their
special tokens and a vocabulary of some hundreds.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers.project import constitution_lines

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

# A date and a knowledge cut-off in the system block, present even without a system prompt; every text trimmed; nothing after <|eot_id|>.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set system_message = "" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
LLAMA_DATED = LLAMA.replace('date_string = "26 Jul 2024"', 'date_string = strftime_now("%d %b %Y")')  # as in Llama 3.2

# A default system prompt where none is given; a newline after each turn's end.
QWEN = """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a stand-in.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

# The last answer is shown with its thoughts, an empty block if it has none; earlier ones without; the generation prompt opens none.
QWEN_THINKING = """
{%- for message in messages %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\nTHINK' }}
{%- endif %}
"""

ALTERNATE = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('after the optional system message, user and assistant must alternate') }}
    {%- endif %}
"""
# The system prompt in the first user message; no generation prompt; an answer begins with a space.
MISTRAL_FIRST = (
    ALTERNATE
    + """
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)
# The system prompt in the last message, if that is the user's: it is gone as soon as an answer follows.
MISTRAL_LAST = (
    ALTERNATE
    + """
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content']|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
)

# No system prompt; the assistant is called model; every text trimmed; a newline after each turn's end.
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""

# The system prompt begins the first question.
GEMMA_3 = """{{ bos_token }}
{%- set prefix = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix = messages[0]['content'] + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""

# After the last turn another token, which ends the document (as Phi-3): the model is not to say it.
PHI = """
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}
"""


@lru_cache(maxsize=1)
def _text() -> tuple[str, ...]:
    """What the tokenizers learn from; the blank lines make two newlines one token, as in the real ones."""
    return (*constitution_lines(), *["\n\n"] * 200)


def _bytes(special: list[str], *, bos: str | None = None, plain: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE (Llama 3, Qwen, SmolLM2); with `bos`, one that adds it of itself, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _pieces(special: list[str], *, prefix: str) -> Tokenizer:
    """Pieces of text with `▁` for a space and single bytes for the rest (Mistral, Gemma).

    Args:
        prefix: where a space is put before a text: "always" after a control token too, "first" only at the very beginning, "never".
    """
    trained = Tokenizer(models.BPE())
    replace = normalizers.Replace(" ", "▁")
    trained.normalizer = replace
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    trained.train_from_iterator(_text(), trainers.BpeTrainer(vocab_size=400, limit_alphabet=60, show_progress=False))
    raw = json.loads(trained.to_str())["model"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *raw["vocab"]]
    merges = [tuple(m) for m in raw["merges"]]
    tokenizer = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = (
            normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix == "always" else replace
        )
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI_ROLES = ["<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TURNS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]

# Some classes of transformers 5 build a tokenizer anew from its vocabulary, with another first space or without its rule for digits;
# this one takes tokenizer.json as it is. The others below are the real models' own.
AS_IT_IS = {"tokenizer_class": "TokenizersBackend"}
# name: (tokenizer, template, bos, eos, the token that ends a turn, what its tokenizer_config.json says besides)
STANDINS = {
    "smollm2": (lambda: _bytes(IM), CHATML, "<|im_start|>", "<|im_end|>", "<|im_end|>", AS_IT_IS),
    "llama-3.1": (lambda: _bytes(HEADERS, bos=HEADERS[0]), LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "llama-3.2": (lambda: _bytes(HEADERS, bos=HEADERS[0]), LLAMA_DATED, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "qwen2.5": (lambda: _bytes(IM), QWEN, None, "<|im_end|>", "<|im_end|>", {"tokenizer_class": "Qwen2Tokenizer"}),
    "qwen3": (lambda: _bytes(IM, plain=("<think>", "</think>")), QWEN_THINKING.replace("THINK", ""), None, "<|im_end|>", "<|im_end|>", {"tokenizer_class": "Qwen2Tokenizer"}),
    "mistral-0.2": (lambda: _pieces(["<unk>", "<s>", "</s>"], prefix="always"), MISTRAL_FIRST, "<s>", "</s>", "</s>", AS_IT_IS),
    "mistral-0.3": (lambda: _pieces(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], prefix="first"), MISTRAL_LAST, "<s>", "</s>", "</s>", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "gemma-2": (lambda: _pieces(TURNS, prefix="never"), GEMMA, "<bos>", "<eos>", "<end_of_turn>", {"tokenizer_class": "GemmaTokenizer"}),
    "gemma-3": (lambda: _pieces(TURNS, prefix="never"), GEMMA_3, "<bos>", "<eos>", "<end_of_turn>", {"tokenizer_class": "GemmaTokenizer"}),
    "phi-3": (lambda: _pieces(PHI_ROLES, prefix="always"), PHI, None, "<|endoftext|>", "<|end|>", AS_IT_IS),
}  # fmt: skip


def write_standin(folder: Path, name: str, *, template: str | None = None) -> Path:
    """The tokenizer files of a stand-in, with another `template` if given."""
    build, own, bos, eos, _, besides = STANDINS[name]
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": "<unk>" if "<unk>" in (folder / "tokenizer.json").read_text(encoding="utf-8") else None,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | besides | {"model_max_length": 2048}), encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text(template or own, encoding="utf-8")
    return folder
