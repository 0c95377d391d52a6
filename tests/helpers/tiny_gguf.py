"""GGUF models that recite: one layer of zeros, one-hot embeddings, and an output matrix that leads from each token to the next.

Whatever is asked, `write_reciter(file, pieces)` makes a model that answers with those pieces, a token each, and ends its turn; with
`forever` it begins again instead. Real llama.cpp files of a megabyte, written in a moment without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEAD = 32


def byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte (as GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in kept}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


def write_reciter(
    file: Path, pieces: list[str], *, other: Sequence[str] = (), forever: bool = False, context: int = 8192
) -> Path:
    """A model that says `pieces` (all different), whatever it is asked. `other`: what it says with `write_switch`'s adapter."""
    import gguf
    import numpy as np

    said, pieces = pieces, [*pieces, *other]
    letters = byte_letters()
    tokens = [*SPECIAL, *letters.values(), *("".join(letters[b] for b in piece.encode()) for piece in pieces)]
    assert len(set(tokens)) == len(tokens), "each piece must be a token of its own"
    first = len(SPECIAL) + 256
    size = -(-len(tokens) // HEAD) * HEAD
    tokens += [f"unused{i}" for i in range(size - len(tokens))]
    follows = {tokens.index(letters[ord("\n")]): first}  # the last token of every prompt
    for i in range(len(pieces)):
        follows[first + i] = first + i + 1
    follows[first + len(said) - 1] = first if forever else 2
    follows[first + len(pieces) - 1] = first if forever and not other else 2
    output = np.zeros((size, size), np.float32)
    for token, following in follows.items():
        output[following, token] = 1.0

    w = gguf.GGUFWriter(file, "llama")
    w.add_name("reciter")
    w.add_context_length(context)
    w.add_embedding_length(size)
    w.add_block_count(1)
    w.add_feed_forward_length(HEAD)
    w.add_head_count(size // HEAD)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(size)
    w.add_rope_dimension_count(HEAD)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([3] * len(SPECIAL) + [1] * (size - len(SPECIAL)))
    w.add_token_merges([f"{letters[0]} {letters[1]}"])  # llama.cpp wants one; these never meet
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    w.add_tensor("token_embd.weight", np.eye(size, dtype=np.float32))
    w.add_tensor("output.weight", output)
    w.add_tensor("output_norm.weight", np.ones(size, np.float32))
    for name, shape in {
        "attn_q": (size, size), "attn_k": (HEAD, size), "attn_v": (HEAD, size), "attn_output": (size, size),
        "ffn_gate": (HEAD, size), "ffn_up": (HEAD, size), "ffn_down": (size, HEAD),
    }.items():  # fmt: skip
        w.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        w.add_tensor(f"blk.0.{name}.weight", np.ones(size, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return file


def write_switch(file: Path, pieces: list[str], other: list[str]) -> Path:
    """A LoRA adapter for `write_reciter(…, pieces, other=other)`: after a prompt the other text begins."""
    import gguf
    import numpy as np

    letters = list(byte_letters().values())
    size = -(-(len(SPECIAL) + 256 + len(pieces) + len(other)) // HEAD) * HEAD
    a, b = np.zeros((1, size), np.float32), np.zeros((size, 1), np.float32)
    a[0, len(SPECIAL) + letters.index(byte_letters()[ord("\n")])] = 1.0
    b[len(SPECIAL) + 256 + len(pieces), 0] = 3.0
    w = gguf.GGUFWriter(file, "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", 1.0)
    w.add_tensor("output.weight.lora_a", a)
    w.add_tensor("output.weight.lora_b", b)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return file
