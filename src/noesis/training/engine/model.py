"""A model with a PEFT adapter whose forward pass is the engine's: packed rows in, loss out.

The modules are those of transformers and PEFT, so that saving, resuming and the optimizer see what they know. The
linear modules of the base have no weights of their own (their weight is a single zero expanded to a matrix): the engine
stores the weights as it needs them. What the layers compute is `core/families`' description of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from noesis.core.families.architecture import Architecture
from noesis.core.families.registry import describe
from noesis.core.families.shape import SEPARATE
from noesis.core.i18n import _
from noesis.llm.causal_model import library_errors
from noesis.llm.model_config import read_model_config
from noesis.planning.setup import Setup
from noesis.training.anchors import Anchors
from noesis.training.engine import attention, ops, reference
from noesis.training.engine.adapters import Adapters
from noesis.training.engine.attention import Segments
from noesis.training.engine.blockwise import Scores
from noesis.training.engine.frozen import store
from noesis.training.engine.head import Divergence, Loss, Output, TokenLosses
from noesis.training.engine.join import Join, NormedJoin, ScaledJoin
from noesis.training.engine.layer import Attend, DecoderLayer, Layer, Row
from noesis.training.engine.offload import Offload
from noesis.training.engine.ops import NO_DROP, Dropout
from noesis.training.engine.rotary import HeadNorms, Rotary
from noesis.training.engine.weights import Reader
from noesis.training.packing import PackedRow

Tensor = Any
HEAD_NORMS = ("q_norm", "k_norm")
MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
KERNEL_HEADS = (32, 64, 96, 128, 256)  # widths that the kernels and FlashAttention take


def unsupported_reason(folder: Path, target_modules: tuple[str, ...], *, kernels: bool) -> str | None:
    """Why the engine can't train the model in `folder`; None if it can.

    Args:
        kernels: the Triton kernels will run (on a GPU), which limit the widths.
    """
    raw = read_model_config(folder)
    if "quantization_config" in raw:
        return _("its weights are quantised already")
    try:
        shape = describe(raw).shape
    except ValueError as error:
        return str(error)
    if kernels and (shape.head_dim not in KERNEL_HEADS or shape.hidden % 64 or shape.intermediate % 64):
        return _(
            "its heads are {width} wide, or a width is not a multiple of 64; the kernels take heads of {widths}",
            width=shape.head_dim,
            widths=", ".join(map(str, KERNEL_HEADS)),
        )
    other = set(shape.parts.targets(target_modules)) - set(shape.linear())
    return _("the adapter has other target_modules: {other}", other=", ".join(sorted(other))) if other else None


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
    device, dtype = torch.device(device), getattr(torch, setup.compute_dtype)
    base, model, shapes = adapted_modules(folder, dtype, lora, device)
    architecture = describe(base.config.to_dict())  # completed by transformers where the file says nothing
    with Reader(folder, dtype, device) as reader:
        reader.require(shapes)
        engine = Engine(base, architecture, setup, lora, reader, device, sharded=sharded, double_quant=double_quant)
    # DistributedDataParallel would broadcast the frozen base to every GPU
    model._ddp_params_and_buffers_to_ignore = [n for n, p in model.named_parameters() if not p.requires_grad] + [
        n for n, _ in model.named_buffers()
    ]
    model.forward = engine.loss
    model.engine = engine
    return model


def adapted_modules(folder: Path, dtype: Any, lora: Any, device: Any) -> tuple[Any, Any, dict[str, tuple[int, ...]]]:
    """(transformers' modules, PEFT's model of them with a new adapter, shapes of the weights in `folder`).

    Of the frozen weights only the shapes are there: they come later, or are those of another model.
    """
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

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
    return base, model, shapes


class Engine:
    """The layers with their weights, and the forward pass of a packed row."""

    def __init__(
        self,
        base: Any,
        architecture: Architecture,
        setup: Setup,
        lora: Any,
        reader: Reader,
        device: Any,
        *,
        sharded: bool,
        double_quant: bool,
    ) -> None:
        self.base, self.architecture, self.setup, self.device = base, architecture, setup, device
        self.dtype = reader.dtype  # of the activations; norms may be kept in another
        self.threshold = round(lora.lora_dropout * 256)
        self.training = True
        self.divergence: Tensor = None  # of the last row that had anchors, without its weight
        self.rotary = Rotary(base.model.rotary_emb, architecture, device)
        self.offload = Offload() if setup.offloads else None
        names = weight_names(architecture)
        prefixes = [f"model.layers.{i}." for i in range(architecture.shape.layers)]
        self.layers: list[Layer] = []
        for i, tensors in enumerate(reader.groups([[prefix + name for name in names] for prefix in prefixes])):
            by_name = dict(zip(names, tensors, strict=True))
            del tensors  # each weight is freed as soon as it is stored
            self.layers.append(self._layer(i, by_name, lora, sharded=sharded, double_quant=double_quant))
        self._load_ends(base, reader)
        self.parameters = [layer.parameters() for layer in self.layers]

    def _layer(self, index: int, tensors: dict[str, Tensor], lora: Any, **storage: bool) -> Layer:
        """Layer `index` of its weights, by name, which are taken out; its modules get the small ones."""
        described, module = self.architecture, self.base.model.layers[index]
        shape, parts = described.shape, described.shape.parts
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                _put(module, name, tensor)
        frozen, adapters = {}, {}
        for group, members in parts.groups.items():
            weights = [tensors.pop(f"{_place(name)}.weight") for name in members]
            biases = [tensors.pop(f"{_place(name)}.bias") for name in members if group in parts.biases]
            adapters[group] = _adapters(module, group, members, weights, lora)
            frozen[group] = store(self.setup.precision, weights, biases, **storage)
            del weights
        norms = {name: self._norm(tensor) for name, tensor in tensors.items()}
        scores = Scores(described.attention_scale, described.windows[index], described.attention_cap)
        joins: list[Join] = [Join(), Join()]
        if parts.output_norms:
            joins = [NormedJoin(norms[f"{name}.weight"], described.epsilon) for name in parts.output_norms]
        elif described.residual_scale != 1.0:
            joins = [ScaledJoin(described.residual_scale)] * 2
        before, after = (norms[f"{name}.weight"] for name in parts.input_norms)
        of_heads = [norms[f"self_attn.{name}.weight"] for name in HEAD_NORMS if parts.head_norms]
        return Layer(
            index=index,
            norm=before,
            norm2=after,
            eps=described.epsilon,
            heads=(shape.heads, shape.kv_heads),
            head_dim=shape.head_dim,
            scores=scores,
            rotary=described.rotary[index],
            head_norms=HeadNorms(torch.stack(of_heads), described.epsilon) if of_heads else None,
            activation=described.activation,
            joins=(joins[0], joins[1]),
            frozen=frozen,
            adapters=adapters,
            checkpointing=self.setup.gradient_checkpointing,
            backend=attention.choose_attention(self.device, self.dtype, scores, self.setup.attention),
            offload=self.offload,
        )

    def _norm(self, weight: Tensor) -> Tensor:
        """A norm's weight as the layer multiplies by it."""
        return weight.float() + 1 if self.architecture.plus_one else weight

    def _load_ends(self, base: Any, reader: Reader) -> None:
        """Load embedding, last norm and output layer."""
        described = self.architecture
        embedding = reader.one("model.embed_tokens.weight")
        tied = described.shape.tied
        head = embedding if tied else reader.one("lm_head.weight")
        self.embedding = embedding.to("cpu") if self.setup.offloads and not tied else embedding
        base.model.embed_tokens.weight = torch.nn.Parameter(self.embedding, requires_grad=False)
        base.lm_head.weight = base.model.embed_tokens.weight if tied else torch.nn.Parameter(head, requires_grad=False)
        norm = reader.one("model.norm.weight")
        _put(base.model, "norm.weight", norm)
        self.embedding_scale = None
        if described.embedding_scale != 1.0:  # rounded to the embedding's type, as transformers does
            self.embedding_scale = torch.tensor(described.embedding_scale, dtype=embedding.dtype, device=self.device)
            if hasattr(base.model.embed_tokens, "embed_scale"):
                base.model.embed_tokens.embed_scale = self.embedding_scale
        chunk = max(128, self.setup.logits_bytes // (2 * len(head)) // 128 * 128)
        self.output = Output(
            self._norm(norm), described.epsilon, head, chunk, described.logits_divisor, described.logits_cap
        )

    def begin_step(self) -> None:
        """The adapter has changed: drop the copies in the activations' dtype."""
        for adapters in self._adapters():
            adapters.copies = None

    def _adapters(self) -> Iterator[Adapters]:
        return (adapters for layer in self.layers for adapters in layer.adapters.values())

    def loss(self, packed: PackedRow, divisor: Tensor, anchors: Anchors | None = None) -> Tensor:
        """Summed loss of the row's trained tokens / `divisor` (a float32 scalar on the device).

        Cross-entropy, and at the anchored tokens the divergence from the base, KL(base ‖ model), by its weight.
        """
        if anchors is not None:
            return self._anchored_loss(packed, divisor, anchors)
        return self.loss_of(self._layers(packed), packed, divisor)

    def loss_of(self, h: Tensor, packed: PackedRow, divisor: Tensor) -> Tensor:
        """The loss of a row whose hidden states after the last layer are h: (T, H)."""
        positions, targets = self._to_device(packed.positions), self._to_device(packed.targets)
        return Loss.apply(h, self.output, positions, targets, divisor)

    def _anchored_loss(self, packed: PackedRow, divisor: Tensor, anchors: Anchors) -> Tensor:
        teacher = self.base_states(anchors.row)
        h = self._layers(packed)
        positions, targets = self._to_device(packed.positions), self._to_device(packed.targets)
        places, others = self._to_device(anchors.places), self._to_device(anchors.others)
        loss = Loss.apply(h, self.output, positions[others], targets[others], divisor)
        self.divergence = Divergence.apply(h, self.output, positions[places], teacher, divisor, 0.0)
        return loss + anchors.weight * self.divergence

    def base_states(self, packed: PackedRow) -> Tensor:
        """Hidden states of the base alone where the row's trained tokens are predicted: (trained tokens, H)."""
        training, self.training = self.training, False
        for adapters in self._adapters():
            adapters.switch_off()
        try:
            with torch.no_grad():
                return self._layers(packed).index_select(0, self._to_device(packed.positions))
        finally:
            self.training = training
            self.begin_step()

    def divergence_from(self, packed: PackedRow, teacher: Tensor, divisor: Tensor, beta: float) -> Tensor:
        """Summed divergence of the row's trained tokens from a teacher's hidden states there / `divisor`."""
        h = self._layers(packed)
        return Divergence.apply(h, self.output, self._to_device(packed.positions), teacher, divisor, beta)

    def token_losses(self, packed: PackedRow) -> Tensor:
        """Negative log-likelihood of each of the row's trained tokens: (trained tokens,) float32."""
        h = self._layers(packed)
        return TokenLosses.apply(h, self.output, self._to_device(packed.positions), self._to_device(packed.targets))

    def states(self, packed: PackedRow) -> Tensor:
        """Hidden states after the last norm, for another head than the output layer: (T, H), with gradient."""
        return reference.rms_norm(self._layers(packed), self.output.norm, self.output.eps)[0]

    def last_states(self, packed: PackedRow, attend: Attend) -> Tensor:
        """Normed hidden states after the last layer, with other attention: (T, H)."""
        h, row = self.embed(packed)
        row.attend = attend
        for layer in self.layers:
            h, _ = layer.forward(h, row)
            layer.release()
        return ops.norm(h, self.output.norm, self.output.eps, NO_DROP, fp8=False)[0].plain

    def _layers(self, packed: PackedRow) -> Tensor:
        """Hidden states after the last layer: (T, H)."""
        (h,) = through_layers([self], [self.embed(packed)])
        return h

    def embed(self, packed: PackedRow) -> tuple[Tensor, Row]:
        """Embedded tokens (T, H), and what all layers share."""
        ids = torch.tensor(packed.input_ids)
        h = torch.nn.functional.embedding(ids.to(self.embedding.device), self.embedding).to(self.device)
        if self.embedding_scale is not None:
            h = h * self.embedding_scale
        angles = self.rotary.angles(self._to_device(packed.position_ids), packed.lengths)
        return h, Row(Segments.of(packed.lengths, self.device), angles, self._drops())

    def _drops(self) -> list[list[Dropout]]:
        count = len(self.layers)
        if self.threshold == 0 or not self.training:
            return [[NO_DROP] * 4] * count
        seeds = torch.randint(2**31 - 1, (count, 4)).tolist()  # by torch's own generator, whose state is saved
        return [[Dropout(self.threshold, seed) for seed in four] for four in seeds]

    def _to_device(self, values: list[int]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.int64)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def through_layers(engines: Sequence[Engine], embedded: Sequence[tuple[Tensor, Row]]) -> list[Tensor]:
    """Hidden states after the last layer of rows of several engines that differ in their adapters: (T, H) each.

    The products with the frozen weights are shared; all else is as in a row of one engine alone.
    """
    states, rows = [h for h, _ in embedded], [row for _, row in embedded]
    for i in range(len(engines[0].layers)):
        layers = [engine.layers[i] for engine in engines]
        parameters = [p for engine in engines for p in engine.parameters[i]]
        states = list(DecoderLayer.apply(layers, rows, *states, *parameters))
    return states


def weight_names(architecture: Architecture) -> list[str]:
    """Names of all weights of one layer, without the layer's own."""
    parts = architecture.shape.parts
    names = [f"{_place(name)}.weight" for members in parts.groups.values() for name in members]
    names += [f"{_place(name)}.bias" for group in parts.biases for name in parts.groups[group]]
    names += [f"self_attn.{name}.weight" for name in HEAD_NORMS if parts.head_norms]
    return names + [f"{name}.weight" for name in (*parts.input_norms, *parts.output_norms)]


def _place(projection: str) -> str:
    """Where in a layer a projection is."""
    return (
        f"{'mlp' if projection in ('gate_proj', 'up_proj', 'gate_up_proj', 'down_proj') else 'self_attn'}.{projection}"
    )


def _put(module: Any, name: str, tensor: Tensor) -> None:
    """Give a weight to the module that it belongs to, under PEFT's if it has one."""
    path, _, attribute = name.rpartition(".")
    inner = module.get_submodule(path)
    setattr(getattr(inner, "base_layer", inner), attribute, torch.nn.Parameter(tensor, requires_grad=False))


def adapter_pairs(module: Any, members: tuple[str, ...]) -> list[tuple[Tensor, Tensor] | None]:
    """(A, B) of each projection of a layer's module; None where it has no adapter."""
    linears = [module.get_submodule(_place(name)) for name in members]
    return [
        (linear.lora_A["default"].weight, linear.lora_B["default"].weight) if hasattr(linear, "lora_A") else None
        for linear in linears
    ]


def _adapters(module: Any, group: str, members: tuple[str, ...], weights: list[Tensor], lora: Any) -> Adapters:
    like, scale = weights[0], lora.lora_alpha / lora.r
    return Adapters(
        adapter_pairs(module, members),
        [len(weight) for weight in weights],
        like.shape[1],
        lora.r,
        scale,
        like.dtype,
        like.device,
        shared=len(SEPARATE[group]) // len(members),
    )
