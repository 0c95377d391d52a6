"""A Llama-like model with a PEFT adapter whose forward pass is the engine's: packed rows in, loss out.

The modules are those of transformers and PEFT, so that saving, resuming and the optimizer see what they know. The
linear modules of the base have no weights of their own (their weight is a single zero expanded to a matrix): the engine
stores the weights as it needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noesis.llm.causal_model import library_errors
from noesis.llm.model_config import read_model_config
from noesis.planning.setup import Setup
from noesis.training.engine import attention
from noesis.training.engine.attention import Segments
from noesis.training.engine.frozen import store
from noesis.training.engine.head import Loss, TokenLosses
from noesis.training.engine.layer import NO_DROP, Adapters, DecoderLayer, Layer, Row
from noesis.training.engine.offload import Offload
from noesis.training.engine.ops import Dropout
from noesis.training.engine.weights import Reader
from noesis.training.packing import PackedRow

Tensor = Any
GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


def unsupported_reason(folder: Path, target_modules: tuple[str, ...], *, kernels: bool) -> str | None:
    """Why the engine can't train the model in `folder`; None if it can.

    Args:
        kernels: the Triton kernels will run (on a GPU), which limit the widths.
    """
    raw = read_model_config(folder)
    if raw.get("model_type") not in ("llama", "mistral"):
        return f"its layers are of type {raw.get('model_type')!r}; the engine knows llama and mistral"
    if (
        raw.get("sliding_window")
        or raw.get("attention_bias")
        or raw.get("mlp_bias")
        or raw.get("hidden_act", "silu") != "silu"
    ):
        return "it has a sliding window, biases, or an activation other than silu"
    head = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    if kernels and (head not in (32, 64, 128, 256) or raw["hidden_size"] % 64 or raw["intermediate_size"] % 64):
        return (
            f"its heads are {head} wide, or a width is not a multiple of 64; "
            "the kernels take heads of 32, 64, 128 or 256"
        )
    if "quantization_config" in raw:
        return "its weights are quantised already"
    other = set(target_modules) - {name for names in GROUPS.values() for name in names}
    return f"the adapter has other target_modules: {', '.join(sorted(other))}" if other else None


def build(
    folder: Path,
    setup: Setup,
    lora: Any,
    device: Any,
    *,
    sharded: bool = False,
    double_quant: bool = True,
) -> Any:
    """The PEFT model with its frozen base in `setup.precision`; `model(PackedRow, divisor)` is the loss.

    Args:
        lora: `peft.LoraConfig`.
        sharded: spread the projections' frozen weights over the GPUs.
        double_quant: quantise NF4's scales too (`bnb_4bit_use_double_quant`).
    """
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    device, dtype = torch.device(device), getattr(torch, setup.compute_dtype)
    with library_errors(f"can't load {folder}"), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
    for name, module in list(base.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            empty = torch.zeros((), dtype=dtype, device=device).expand(module.out_features, module.in_features)
            module.weight = torch.nn.Parameter(empty, requires_grad=False)
    base.model.rotary_emb = type(base.model.rotary_emb)(config).to(device)  # its frequencies are computed, not loaded
    with torch.device(device):
        model = get_peft_model(base, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    with Reader(folder, dtype, device) as reader:
        reader.require(shapes)
        engine = Engine(base, setup, lora, reader, device, sharded=sharded, double_quant=double_quant)
    # DistributedDataParallel would broadcast the frozen base to every GPU
    model._ddp_params_and_buffers_to_ignore = [n for n, p in model.named_parameters() if not p.requires_grad] + [
        n for n, _ in model.named_buffers()
    ]
    model.forward = engine.loss
    model.engine = engine
    return model


class Engine:
    """The layers with their weights, and the forward pass of a packed row."""

    def __init__(
        self,
        base: Any,
        setup: Setup,
        lora: Any,
        reader: Reader,
        device: Any,
        *,
        sharded: bool,
        double_quant: bool,
    ) -> None:
        config = base.config
        self.base, self.setup, self.device = base, setup, device
        self.threshold = round(lora.lora_dropout * 256)
        self.training = True
        self.eps = config.rms_norm_eps
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.rotary = base.model.rotary_emb
        heads = (config.num_attention_heads, config.num_key_value_heads)
        backend = attention.choose_attention(device, reader.dtype)
        offload = Offload() if setup.offloads else None
        self.layers: list[Layer] = []
        prefixes = [f"model.layers.{i}." for i in range(config.num_hidden_layers)]
        names = [f"self_attn.{p}" for p in (*GROUPS["qkv"], *GROUPS["o"])] + [
            f"mlp.{p}" for p in (*GROUPS["gate_up"], *GROUPS["down"])
        ]
        names += ["input_layernorm", "post_attention_layernorm"]
        for i, tensors in enumerate(reader.groups([[f"{p}{name}.weight" for name in names] for p in prefixes])):
            module = base.model.layers[i]
            by_name = {name.rpartition(".")[2]: tensor for name, tensor in zip(names, tensors, strict=True)}
            del tensors
            for norm in ("input_layernorm", "post_attention_layernorm"):
                getattr(module, norm).weight = torch.nn.Parameter(by_name[norm], requires_grad=False)
            frozen, adapters = {}, {}
            for group, members in GROUPS.items():
                parts = [by_name.pop(name) for name in members]
                adapters[group] = _adapters(module, members, parts, lora, dtype=parts[0].dtype, device=device)
                frozen[group] = store(setup.precision, parts, sharded=sharded, double_quant=double_quant)
                del parts
            self.layers.append(
                Layer(
                    index=i,
                    norm=module.input_layernorm.weight,
                    norm2=module.post_attention_layernorm.weight,
                    eps=self.eps,
                    heads=heads,
                    head_dim=self.head_dim,
                    frozen=frozen,
                    adapters=adapters,
                    checkpointing=setup.gradient_checkpointing,
                    backend=backend,
                    offload=offload,
                )
            )
        self._load_ends(base, reader)
        self.chunk = max(128, setup.logits_bytes // (2 * len(self.head)) // 128 * 128)  # tokens
        self.parameters = [layer.parameters() for layer in self.layers]

    def _load_ends(self, base: Any, reader: Reader) -> None:
        """Load embedding, last norm and output layer."""
        embedding = reader.one("model.embed_tokens.weight")
        tied = base.config.tie_word_embeddings
        self.head = embedding if tied else reader.one("lm_head.weight")
        self.embedding = embedding.to("cpu") if self.setup.offloads and not tied else embedding
        self.norm = reader.one("model.norm.weight")
        base.model.embed_tokens.weight = torch.nn.Parameter(self.embedding, requires_grad=False)
        base.lm_head.weight = (
            base.model.embed_tokens.weight if tied else torch.nn.Parameter(self.head, requires_grad=False)
        )
        base.model.norm.weight = torch.nn.Parameter(self.norm, requires_grad=False)

    def begin_step(self) -> None:
        """The adapter has changed: drop the copies in the activations' dtype."""
        for layer in self.layers:
            for adapters in layer.adapters.values():
                adapters.copies = None

    def loss(self, packed: PackedRow, divisor: Tensor) -> Tensor:
        """Summed negative log-likelihood of the row's trained tokens / `divisor` (a float32 scalar on the device)."""
        h = self._layers(packed)
        positions, targets = self._to_device(packed.positions), self._to_device(packed.targets)
        return Loss.apply(h, self.norm, self.eps, self.head, positions, targets, divisor, self.chunk)

    def token_losses(self, packed: PackedRow) -> Tensor:
        """Negative log-likelihood of each of the row's trained tokens: (trained tokens,) float32."""
        h = self._layers(packed)
        return TokenLosses.apply(
            h,
            self.norm,
            self.eps,
            self.head,
            self._to_device(packed.positions),
            self._to_device(packed.targets),
            self.chunk,
        )

    def _layers(self, packed: PackedRow) -> Tensor:
        """Hidden states after the last layer: (T, H)."""
        h, row = self._embed(packed)
        for layer, parameters in zip(self.layers, self.parameters, strict=True):
            h = DecoderLayer.apply(h, layer, row, *parameters)
        return h

    def _embed(self, packed: PackedRow) -> tuple[Tensor, Row]:
        """Embedded tokens (T, H), and what all layers share."""
        ids = torch.tensor(packed.input_ids)
        h = torch.nn.functional.embedding(ids.to(self.embedding.device), self.embedding).to(self.device)
        with torch.no_grad():
            cos, sin = self.rotary(
                torch.empty((), dtype=torch.float32, device=self.device), self._to_device(packed.position_ids)[None]
            )
        half = self.head_dim // 2
        cos, sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return h, Row(Segments.of(packed.lengths, self.device), cos, sin, self._drops())

    def _drops(self) -> list[list[Dropout]]:
        count = len(self.layers)
        if self.threshold == 0 or not self.training:
            return [[NO_DROP] * 4] * count
        seeds = torch.randint(2**31 - 1, (count, 4)).tolist()  # by torch's own generator, whose state is saved
        return [[Dropout(self.threshold, seed) for seed in four] for four in seeds]

    def _to_device(self, values: list[int]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.int64)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def _adapters(
    module: Any, members: tuple[str, ...], parts: list[Tensor], lora: Any, *, dtype: Any, device: Any
) -> Adapters:
    pairs: list[tuple[Tensor, Tensor] | None] = []
    for name in members:
        linear = getattr(module.self_attn if hasattr(module.self_attn, name) else module.mlp, name)
        has = hasattr(linear, "lora_A")
        pairs.append((linear.lora_A["default"].weight, linear.lora_B["default"].weight) if has else None)
    sizes, inputs = [len(part) for part in parts], parts[0].shape[1]
    return Adapters(pairs, sizes, inputs, lora.r, lora.lora_alpha / lora.r, dtype, device)
