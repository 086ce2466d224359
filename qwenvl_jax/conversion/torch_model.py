"""Qwen-VL in PyTorch: the modelling file that lies in every release.

Load it by `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` or `modeling_qwen.load(folder)`.

`input_ids` hold `<img>`, then one id per image query, then `</img>` for every image; `pixel_values` holds the images in
order of appearance, as `preprocess` makes them. Names and layouts are the released ones (QWenLMHeadModel).

Legend: B rows, L tokens, I images, P patches, Q queries, D decoder width, W vision width, N heads, K head size.
"""
# transformers' own annotations contradict one another here:
# mypy: disable-error-code="misc, override, assignment, arg-type"

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing Pillow


DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "use_logn_attn": True,
    "use_dynamic_ntk": True,
    "initializer_range": 0.02,
    "use_cache": True,
}


class QWenConfig(PretrainedConfig):
    """Sizes under the released key names; the defaults are the released model's.

    `intermediate_size` is the sum of both MLP branches. `visual` may add `n_queries`, `position_grid` and
    `resampler_heads`, which the released file leaves to defaults (256, 16, output_dim / 128).
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, visual: dict[str, Any] | None = None, **values: Any):
        for name, default in DEFAULTS.items():
            setattr(self, name, values.pop(name, default))
        self.visual = dict(visual or {})
        values.setdefault("tie_word_embeddings", False)
        super().__init__(**values)


def preprocess(images: list[Any], size: int) -> torch.Tensor:
    """PIL images -> [I, 3, size, size] float32: squashed to a square (bicubic), scaled and normalised."""
    rows = [bytearray(image.convert("RGB").resize((size, size), BICUBIC).tobytes()) for image in images]
    pixels = torch.stack([torch.frombuffer(row, dtype=torch.uint8).view(size, size, 3) for row in rows])
    return normalise(pixels)


def normalise(pixels_IHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [I, H, W, 3] -> normalised float32 [I, 3, H, W]."""
    scaled = pixels_IHWC.float() / 255
    mean, std = torch.tensor(IMAGE_MEAN, device=scaled.device), torch.tensor(IMAGE_STD, device=scaled.device)
    return ((scaled - mean) / std).permute(0, 3, 1, 2)


def _resize_table(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """A square position table [G*G, C] -> [tokens, C]: bicubic, float32, untouched where the sizes agree."""
    source, target = math.isqrt(table.shape[0]), math.isqrt(tokens)
    if source == target:
        return table
    grid = table.float().view(1, source, source, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(tokens, -1).to(table.dtype)


class VisualAttention(nn.Module):
    """Self-attention whose `in_proj` rows are head-major: q, k and v of one head lie together."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_IPW: torch.Tensor) -> torch.Tensor:
        images, patches, width = x_IPW.shape
        qkv = self.in_proj(x_IPW).view(images, patches, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(images, patches, width))


class VisualMLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))  # the exact erf form


class VisualBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = VisualAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = VisualMLP(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisualTransformer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, layers: int, eps: float):
        super().__init__()
        self.resblocks = nn.ModuleList(VisualBlock(width, heads, hidden, eps) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Resampler(nn.Module):
    """Q learned queries read the patches. Positions join queries and keys after their norms, values never."""

    def __init__(self, width: int, inner: int, queries: int, heads: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.pos_embed = nn.Parameter(torch.zeros(queries, width), requires_grad=False)
        self.kv_proj = nn.Linear(inner, width, bias=False)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps)
        self.ln_kv = nn.LayerNorm(width, eps)

    def forward(self, x_IPW: torch.Tensor) -> torch.Tensor:
        patches = self.ln_kv(self.kv_proj(x_IPW))
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x_IPW), -1, -1)
        keys = patches + _resize_table(self.pos_embed, x_IPW.shape[1])
        return self.attn(queries, keys, patches, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """[I, 3, H, W] -> [I, Q, D]: patches, blocks, resampler, then `ln_post` and `proj` at the decoder's width."""

    def __init__(self, visual: dict[str, Any], eps: float):
        super().__init__()
        width, output = visual["width"], visual["output_dim"]
        grid = visual.get("position_grid", 16)
        hidden = int(width * visual["mlp_ratio"])
        self.conv1 = nn.Conv2d(3, width, visual["patch_size"], stride=visual["patch_size"], bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2, width))
        self.ln_pre = nn.LayerNorm(width, eps)
        self.transformer = VisualTransformer(width, visual["heads"], hidden, visual["layers"], eps)
        heads = visual.get("resampler_heads", max(1, output // 128))
        self.attn_pool = Resampler(output, width, visual.get("n_queries", 256), heads, eps)
        self.ln_post = nn.LayerNorm(output, eps)
        self.proj = nn.Parameter(torch.zeros(output, output))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + _resize_table(self.positional_embedding, x.shape[1]))
        return self.ln_post(self.attn_pool(self.transformer(x))) @ self.proj


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight  # cast first, then weigh


def _rotate(x_BNLK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x_BNLK.float().chunk(2, dim=-1)
    return (x_BNLK.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BNLK.dtype)


class Attention(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        width = config.num_attention_heads * config.kv_channels
        self.heads = config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)  # biased, although `no_bias` is true
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x, rotary, allowed, query_scale, cache, layer):
        rows, length, _ = x.shape
        q, k, v = self.c_attn(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        if query_scale is not None:
            q = q * query_scale.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        hidden = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.w2 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, *context):
        x = x + self.attn(self.ln_1(x), *context)
        return x + self.mlp(self.ln_2(x))


class QWenModel(nn.Module):
    """Embeddings, images in their slots, decoder blocks, final norm."""

    def __init__(self, config: QWenConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        if config.visual:
            self.visual = VisionTransformer(config.visual, config.layer_norm_epsilon)

    def embed(self, ids_BL: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """[B, L, D] with the features of every image between its `<img>` and `</img>`."""
        x = self.wte(ids_BL)
        start = self.config.visual.get("image_start_id", -1)
        opened, closed = (ids_BL == start).cumsum(-1), (ids_BL == start + 1).cumsum(-1)
        slots = (opened > closed) & (ids_BL != start)
        if pixel_values is None:
            if bool(slots.any()):
                raise ValueError("the prompt has images but pixel_values is missing")
            return x
        features = self.visual(pixel_values.to(x.device))
        if features.shape[:2].numel() != int(slots.sum()):
            raise ValueError(
                f"{len(features)} images give {features.shape[:2].numel()} features for {int(slots.sum())} image places"
            )
        x = x.clone()
        x[slots] = features.reshape(-1, features.shape[-1]).to(x.dtype)
        return x

    def forward(self, input_ids, attention_mask=None, pixel_values=None, cache=None):
        past = cache.get_seq_length() if cache is not None else 0
        x = self.embed(input_ids, pixel_values)
        rows, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, device=x.device)
        valid = attention_mask.bool()
        positions = (valid.cumsum(-1) - 1).clamp(min=0)[:, past:]
        at = torch.arange(past + length, device=x.device)
        causal = at[past:, None] >= at
        # A padding place sees itself, so that its softmax has something to normalise; nothing reads the result.
        allowed = ((causal & valid[:, None, :]) | (at[past:, None] == at))[:, None]
        rotary = self._rotary(positions, self._ntk_alpha(valid, past, cache))
        scale = self._logn(positions)
        for layer, block in enumerate(self.h):
            x = block(x, rotary, allowed, scale, cache, layer)
        return self.ln_f(x)

    def _ntk_alpha(self, valid, past, cache):
        """One factor per row, from the prompt's length; decoding keeps the prompt's."""
        base = self.config.seq_length
        if self.training or not self.config.use_dynamic_ntk:
            return torch.ones(len(valid), device=valid.device)
        if past and hasattr(cache, "ntk_alpha"):
            return cache.ntk_alpha
        lengths = valid.sum(-1).float()
        alpha = torch.where(lengths > base, 2 ** torch.ceil(torch.log2(lengths / base) + 1) - 1, 1.0).clamp(min=1)
        if cache is not None:
            cache.ntk_alpha = alpha
        return alpha

    def _rotary(self, positions, alpha):
        size = self.config.kv_channels
        base = self.config.rotary_emb_base * alpha ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=positions.device).float() / size
        angles = positions[:, :, None].float() * base[:, None, None] ** -exponents
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    def _logn(self, positions):
        base = self.config.seq_length
        if self.training or not self.config.use_logn_attn or int(positions.max()) < base:
            return None
        factor = torch.log(positions.float() + 1) / math.log(base)
        return torch.where(positions >= base, factor, 1.0)[:, None, :, None]


class QWenLMHeadModel(PreTrainedModel, GenerationMixin):
    """The causal language model with `generate`."""

    config_class = QWenConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    _no_split_modules = ("Block", "VisualBlock")

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids,
        attention_mask=None,
        pixel_values=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **unused,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, V]; `labels` (-100: not supervised) adds the mean cross-entropy, shifted by one."""
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        hidden = self.transformer(input_ids, attention_mask, pixel_values, past_key_values)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, pixel_values=None, use_cache=True, **unused
    ):
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, past:],
            "attention_mask": attention_mask,
            "pixel_values": None if past else pixel_values,  # images are encoded once, with the prompt
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }


def load(folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> QWenLMHeadModel:
    """The model of a release folder, every tensor by its exact name, in evaluation mode."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        model = QWenLMHeadModel(QWenConfig(**json.load(file)))
    with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as file:
        shards = sorted(set(json.load(file)["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        with safe_open(os.path.join(folder, shard), framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    model.load_state_dict(tensors, strict=True)
    return model.to(dtype).eval()
