"""The same model and the same training step in PyTorch, out of what its users would take.

Blocks are those of `transformers`: CLIP's vision layers (without the class token, which Qwen-VL has not) and Qwen2's
decoder layers with as many key and value heads as heads, both with PyTorch's scaled dot-product attention; the
resampler is built on `torch.nn.MultiheadAttention`. AdamW is the fused one. In float32 nothing more is needed. In
bfloat16 the model is wrapped by FSDP2, on one device, too: float32 master weights that are cast block by block, float32
gradients, as in this code. Low-rank adapters are those of `peft`: float32 beside frozen bfloat16 weights, under
autocast instead of FSDP2, and on one device only.

Frozen components are stored in `frozen_dtype` and have no gradient. Only supervised tokens are multiplied by the
vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from steps import Side, process_peak
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import CLIPVisionConfig, Qwen2Config
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from qwenvl_jax.config import Config, ModelConfig
from qwenvl_jax.conversion.torch_model.visual import Resampler, normalise
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime.errors import UserError

_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
# CLIP's layer of transformers 4 also takes a causal mask, and returns a tuple.
_VERSION_4 = "causal_attention_mask" in inspect.signature(CLIPEncoderLayer.forward).parameters
# Per remat policy the operations whose results are kept for the backward pass.
SAVED = {
    "full": [],
    "attention_saved": _ATTENTION,
    "matmuls_saved": [*_ATTENTION, torch.ops.aten.mm.default, torch.ops.aten.addmm.default],
}

# Per target of an adapter the linear layers of Qwen2 that it is.
PROJECTIONS = {
    "decoder/blocks/attn/qkv": ("q_proj", "k_proj", "v_proj"),
    "decoder/blocks/attn/out": ("o_proj",),
    "decoder/blocks/mlp/up": ("up_proj",),
    "decoder/blocks/mlp/gate": ("gate_proj",),
    "decoder/blocks/mlp/down": ("down_proj",),
}


class Patches(nn.Module):
    """uint8 pixels [I, H, H, 3] to [I, P, W]: patches, positions, norm."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        vit = model.vit
        self.grid = vit.position_grid
        self.conv = nn.Conv2d(3, vit.width, vit.patch_size, stride=vit.patch_size, bias=False)
        self.positions = nn.Parameter(torch.randn(vit.position_grid**2, vit.width) * vit.width**-0.5)
        self.norm = nn.LayerNorm(vit.width, vit.layer_norm_eps)

    def forward(self, pixels_IHWC: torch.Tensor) -> torch.Tensor:
        x_IPW = self.conv(normalise(pixels_IHWC).to(self.conv.weight.dtype)).flatten(2).transpose(1, 2)
        positions: torch.Tensor = self.positions
        side = math.isqrt(x_IPW.shape[1])
        if side != self.grid:
            square = positions.float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
            square = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
            positions = square.permute(0, 2, 3, 1).reshape(side**2, -1).to(x_IPW.dtype)
        return self.norm(x_IPW + positions)


class VitHead(nn.Module):
    def __init__(self, model: ModelConfig):
        super().__init__()
        width = model.decoder.width
        self.norm = nn.LayerNorm(width, model.vit.layer_norm_eps)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_IQD: torch.Tensor) -> torch.Tensor:
        return self.proj(self.norm(x_IQD))


class Head(nn.Module):
    """The mean cross-entropy of the supervised tokens."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.norm = Qwen2RMSNorm(model.decoder.width, model.decoder.rms_norm_eps)
        self.lm_head = nn.Linear(model.decoder.width, model.decoder.vocab_size, bias=False)

    def forward(
        self, x_BLD: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        logits = self.lm_head(self.norm(x_BLD[rows, columns]))
        return F.cross_entropy(logits.float(), targets)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One microbatch of one device.

    Attributes:
      ids, positions: [B, L].
      mask: [B, 1, L, L] bool, who sees whom; None where every row is one sample, so that causal kernels apply.
      slots: rows and columns that image features take, in the order of the features.
      pixels: [I, H, H, 3] uint8.
      supervised: rows and columns of the supervised tokens; `targets` their next tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    slots: tuple[torch.Tensor, ...]
    pixels: torch.Tensor
    supervised: tuple[torch.Tensor, ...]
    targets: torch.Tensor


class Peer(nn.Module):
    """Qwen-VL. `unit_names` are its parts, each of which is trained or frozen as a whole."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        vit = model.vit
        decoder = model.decoder
        resampler = model.resampler
        clip = CLIPVisionConfig(
            hidden_size=vit.width, intermediate_size=vit.mlp_dim, num_hidden_layers=vit.layers,
            num_attention_heads=vit.heads, patch_size=vit.patch_size, hidden_act="gelu",
            layer_norm_eps=vit.layer_norm_eps, attn_implementation="sdpa",
        )  # fmt: skip
        qwen = Qwen2Config(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.width,
            intermediate_size=decoder.mlp_dim,
            num_hidden_layers=decoder.layers,
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.heads,
            rms_norm_eps=decoder.rms_norm_eps,
            rope_theta=decoder.rope_base,
            max_position_embeddings=decoder.train_length,
            attn_implementation="sdpa",
        )
        self.patches = Patches(model)
        self.vit_blocks = nn.ModuleList(CLIPEncoderLayer(clip) for _ in range(vit.layers))
        self.resampler = Resampler(
            decoder.width, vit.width, resampler.queries, resampler.heads, resampler.layer_norm_eps
        )
        nn.init.normal_(self.resampler.query, std=0.02)
        self.vit_head = VitHead(model)
        self.embedding = nn.Embedding(decoder.vocab_size, decoder.width)
        self.rotary = Qwen2RotaryEmbedding(qwen)
        self.blocks = nn.ModuleList(Qwen2DecoderLayer(qwen, layer) for layer in range(decoder.layers))
        self.head = Head(model)
        for linear in (self.embedding, self.head.lm_head):
            nn.init.normal_(linear.weight, std=0.02)

    def units(self) -> Iterator[tuple[str, str, nn.Module]]:
        """(component of `qwenvl_jax.config.COMPONENTS`, attribute path, module) in the order of the data."""
        yield "vit", "patches", self.patches
        for layer, block in enumerate(self.vit_blocks):
            yield "vit", f"vit_blocks.{layer}", block
        yield "resampler", "resampler", self.resampler
        yield "vit_head", "vit_head", self.vit_head
        yield "decoder", "embedding", self.embedding
        for layer, block in enumerate(self.blocks):
            yield "decoder", f"blocks.{layer}", block
        yield "decoder", "head", self.head

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        x_IPW = self.patches(pixels)
        for block in self.vit_blocks:
            x_IPW = block(x_IPW, None, None)[0] if _VERSION_4 else block(x_IPW, None)
        return self.vit_head(self.resampler(x_IPW))

    def forward(self, inputs: Inputs) -> torch.Tensor:
        with torch.autocast(inputs.pixels.device.type, enabled=False):  # it would take the norms in float32
            features_IQD = self.encode(inputs.pixels)
        x_BLD = self.embedding(inputs.ids)
        x_BLD = x_BLD.index_put(inputs.slots, features_IQD.flatten(0, 1))
        rotary = self.rotary(x_BLD, inputs.positions)
        for block in self.blocks:
            x_BLD = block(x_BLD, attention_mask=inputs.mask, position_embeddings=rotary)
        return self.head(x_BLD, *inputs.supervised, inputs.targets)


def torch_side(config: Config, batch: Batch, *, compiled: bool) -> Side:
    """PyTorch's step for the same config and batch, from fresh weights; bfloat16 goes with FSDP2.

    On several GPUs every one is a process (`torch.distributed.run`), and the batch is split over them by rows.
    """
    device, adapted = _device(), config.lora.rank > 0
    dtype = getattr(torch, config.compute.compute_dtype)
    sharded = dtype == torch.bfloat16 and not adapted
    rank, world = _join(device) if sharded else (0, 1)
    with torch.device(device):
        peer = Peer(config.model)
    _freeze(peer, config)
    if adapted:
        _adapt(peer, config)
    _checkpoint(peer, config)
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    run: Any = peer
    if sharded:
        _shard(peer, compiled, device, world)
        trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    elif compiled and adapted:
        for blocks in (peer.vit_blocks, peer.blocks):
            for block in blocks:
                block.compile()
    elif compiled:
        run = torch.compile(peer)
    optimizer = torch.optim.AdamW(_groups(peer, config), **_adamw(config), fused=True)
    micros = [_inputs(config, batch, micro, rank, world, device) for micro in range(config.data.accumulation)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for inputs in micros:
            with torch.autocast(device.type, dtype, enabled=adapted and dtype != torch.float32):
                loss = run(inputs) / len(micros)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return total.item()

    def peak() -> float:
        return float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else process_peak()

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return Side(step, count, name, world, peak)


def run_on_all_gpus() -> None:
    """Where there are several GPUs, replaces this process by one for each of them that runs the same command."""
    if torch.cuda.device_count() > 1 and "RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torch.cuda.device_count()}"]
        os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def is_primary() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _join(device: torch.device) -> tuple[int, int]:
    """Begins the process group that FSDP wants; returns this process's rank and how many there are."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    return distributed.get_rank(), distributed.get_world_size()


def _freeze(peer: Peer, config: Config) -> None:
    """Frozen units get their storage dtype and no gradients."""
    frozen_dtype, dtype = (getattr(torch, name) for name in (config.compute.frozen_dtype, config.compute.compute_dtype))
    for component, _, unit in peer.units():
        if component not in config.train.trainable:
            unit.requires_grad_(False).to(frozen_dtype)
    peer.resampler.pos_embed = peer.resampler.pos_embed.to(dtype)


def _adapt(peer: Peer, config: Config) -> None:
    """Adapters by `peft` on the projections of the decoder that the config names; they are all that is trained."""
    from peft import LoraConfig, inject_adapter_in_model  # the other stages do without

    unknown = set(config.lora.adapted) - set(PROJECTIONS)
    if unknown or set(config.train.trainable) != {"lora"}:
        raise UserError("PyTorch's side trains adapters of the decoder alone; take configs/finetune/lora.py as it is")
    alpha: Any = config.lora.alpha  # `peft` declares it whole, and divides
    names = "|".join(name for target in config.lora.adapted for name in PROJECTIONS[target])
    lora = LoraConfig(
        r=config.lora.rank, lora_alpha=alpha, lora_dropout=config.lora.dropout, target_modules=rf"blocks\..*\.({names})"
    )  # fmt: skip
    inject_adapter_in_model(lora, peer)
    for parameter in peer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _checkpoint(peer: Peer, config: Config) -> None:
    """Blocks with something trained in or below them keep for the backward pass what the config's remat policy says."""
    trainable = config.train.trainable
    policies = [
        (peer.vit_blocks, config.compute.remat_vit, "vit" in trainable),
        (peer.blocks, config.compute.remat_decoder, True),
    ]
    for blocks, policy, needed in policies:
        if policy == "none" or not needed:
            continue
        options: dict[str, Any] = {"preserve_rng_state": config.lora.rank > 0}  # for the dropout of adapters
        if SAVED[policy]:
            options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, SAVED[policy])
        for layer, block in enumerate(blocks):
            blocks[layer] = checkpoint_wrapper(block, **options)


def _shard(peer: Peer, compiled: bool, device: torch.device, world: int) -> None:
    """FSDP2 around every unit, each compiled by itself: FSDP works between them, out of the compiler's sight.

    On one device frozen units are left alone, because FSDP would copy them for every use.
    """
    mesh = distributed.init_device_mesh(device.type, (world,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    ignored: set[nn.Parameter] = set()
    for _, path, unit in list(peer.units()):
        wrapped: Any = torch.compile(unit, fullgraph=True) if compiled else unit
        parent, _, name = path.rpartition(".")
        setattr(peer.get_submodule(parent), name, wrapped)
        if world == 1 and not any(parameter.requires_grad for parameter in unit.parameters()):
            ignored |= set(unit.parameters())
        else:
            fully_shard(wrapped, mesh=mesh, mp_policy=policy)
    fully_shard(peer, mesh=mesh, mp_policy=policy, ignored_params=ignored)


def _groups(peer: Peer, config: Config) -> list[dict[str, Any]]:
    """Parameter groups by weight decay and by the ViT's layer-wise rate, as in `qwenvl_jax.training.optimizer`."""
    layers = config.model.vit.layers
    decay = config.optimizer.vit_layer_decay
    rate = config.optimizer.peak_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for component, path, unit in peer.units():
        below_top = 0
        if component == "vit":
            below_top = layers if path == "patches" else layers - 1 - int(path.rpartition(".")[2])
        for parameter in unit.parameters():
            if parameter.requires_grad:
                # Scales and biases, which are not decayed, are what has one axis.
                key = config.optimizer.weight_decay if parameter.ndim > 1 else 0.0, rate * decay**below_top
                groups.setdefault(key, []).append(parameter)
    return [{"params": params, "weight_decay": wd, "lr": lr} for (wd, lr), params in groups.items()]


def _adamw(config: Config) -> dict[str, Any]:
    return {"betas": (config.optimizer.b1, config.optimizer.b2), "eps": config.optimizer.eps}


def _inputs(config: Config, batch: Batch, micro: int, rank: int, world: int, device: torch.device) -> Inputs:
    """One microbatch of `rank`'s rows."""
    rows = config.data.rows_per_microbatch // world
    part = slice(rank * rows, (rank + 1) * rows)
    names = ("tokens", "targets", "loss_mask", "segment_ids", "positions", "image_slot")
    ids, targets, mask, segments, positions, slots = (getattr(batch, name)[micro, part] for name in names)
    images = int(config.data.images_per_row)
    supervised = np.nonzero(mask)
    image_slots = np.nonzero(slots >= 0)
    packed = segments.max() > 1

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    seen = None
    if packed:
        segment_ids = tensor(segments)
        causal = torch.ones(segment_ids.shape[1], segment_ids.shape[1], dtype=torch.bool, device=device).tril()
        seen = (causal & (segment_ids[:, :, None] == segment_ids[:, None, :]))[:, None]
    return Inputs(
        ids=tensor(ids).long(),
        positions=tensor(positions).long(),
        mask=seen,
        slots=tuple(tensor(at) for at in image_slots),
        pixels=tensor(batch.images[micro, rank * rows * images : (rank + 1) * rows * images]),
        supervised=tuple(tensor(at) for at in supervised),
        targets=tensor(targets[supervised]).long(),
    )
