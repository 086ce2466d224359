"""The decoder of Qwen-VL: embeddings with the features of pictures in their slots, blocks, final norm.

B rows, L tokens, I images, Q slots, D width, N heads, K head size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_qwen import QWenConfig
from .visual import VisionTransformer


class Slots(NamedTuple):
    """Where the features of one picture go: `row`, the column `first`, and the path in the slots ("" without one)."""

    row: int
    first: int
    path: str


def find_images(ids_BL: torch.Tensor, start: int, queries: int) -> list[Slots]:
    """The pictures of a batch, row by row. `start` is the id of `<img>`; those of `</img>` and `<imgpad>` follow it.

    Words between `<img>` and `</img>` are text: only path bytes and `<imgpad>` make a picture.

    Raises:
      ValueError: for a picture that is cut off, has not `queries` slots, or whose path leaves no slot for `<imgpad>`.
    """
    end, pad = start + 1, start + 2
    found: list[Slots] = []
    if ids_BL.shape[1] < 2 or not bool((ids_BL == start).any()):
        return found
    for row, ids in enumerate(ids_BL.tolist()):
        for first in (column + 1 for column, token in enumerate(ids) if token == start):
            closed = end in ids[first:]
            inner = ids[first : ids.index(end, first)] if closed else ids[first:]
            padded = pad in inner
            path = inner[: inner.index(pad)] if padded else inner
            if not all(token < 256 for token in path) or any(token != pad for token in inner[len(path) :]):
                if padded:
                    raise ValueError(f"row {row} mixes text and <imgpad> between <img> and </img>; write a path there")
                continue
            name = bytes(path).decode("utf-8", "surrogateescape")
            if closed and not padded and len(inner) == queries:
                raise ValueError(
                    f"the path {name!r} fills all {queries} slots of its image; use one of at most {queries - 2} "
                    "bytes, or write <img></img> and give pixel_values"
                )
            if padded and not (closed and len(inner) == queries):
                raise ValueError(
                    f"an image in row {row} has {len(inner)} slots{'' if closed else ' and is then cut off'}, this "
                    f"model needs {queries}; tokenize it with this model's tokenizer and without truncation"
                )
            if padded:
                found.append(Slots(row, first, name))
    return found


class Context(NamedTuple):
    """What all blocks of one call share.

    Attributes:
      cos: with `sin`, [B, 1, L, K] float32 of the rotary angles.
      sin: see `cos`.
      allowed: [B, 1, L, cached + L] bool, what every query may see.
      query_scale: [B, 1, L, 1] of log-n attention, or None.
      cache: of transformers, or None.
      with_weights: whether blocks return their attention weights.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    allowed: torch.Tensor
    query_scale: torch.Tensor | None
    cache: Any
    with_weights: bool


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
    wide = x_BNLK.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BNLK.dtype)


class QWenAttention(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        width = config.num_attention_heads * config.kv_channels
        self.heads = config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)  # biased, although `no_bias` is true
        self.c_proj = _residual(nn.Linear(width, config.hidden_size, bias=False))

    def forward(self, x_BLD, context: Context, layer: int):
        rows, length, _ = x_BLD.shape
        q, k, v = self.c_attn(x_BLD).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, context.cos, context.sin), _rotate(k, context.cos, context.sin)
        if context.cache is not None:
            k, v = context.cache.update(k, v, layer)
        if context.query_scale is not None:
            q = q * context.query_scale.to(q.dtype)
        weights = None
        if context.with_weights:
            scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~context.allowed, -math.inf)
            weights = scores.float().softmax(-1).to(q.dtype)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=context.allowed)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, -1)), weights


class QWenMLP(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        hidden = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.w2 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.c_proj = _residual(nn.Linear(hidden, config.hidden_size, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


def _residual(layer: nn.Linear) -> nn.Linear:
    """Marks a layer whose output joins the residual stream: it starts smaller (see `_init_weights`).

    The mark lies on the layer because newer versions of transformers do not ask for the modules around it.
    """
    layer.joins_residual = True  # type: ignore[assignment]
    return layer


class QWenBlock(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, x_BLD, context: Context, layer: int):
        mixed_BLD, weights = self.attn(self.ln_1(x_BLD), context, layer)
        x_BLD = x_BLD + mixed_BLD
        return x_BLD + self.mlp(self.ln_2(x_BLD)), weights


class QWenModel(nn.Module):
    """Embeddings, pictures in their slots, decoder blocks, final norm. `visual` exists if the config has one."""

    gradient_checkpointing = False  # transformers sets both
    _gradient_checkpointing_func: Any

    def __init__(self, config: QWenConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(QWenBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTransformer(config.visual, config.layer_norm_epsilon) if config.visual else None

    def images_of(self, ids_BL: torch.Tensor) -> list[Slots]:
        """See `find_images`; none if the model has no vision tower."""
        if self.visual is None:
            return []
        return find_images(ids_BL, self.config.visual["image_start_id"], self.visual.queries)

    def embed(self, ids_BL: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """[B, L, D] with the features of every picture in its slots, all of them from one call of the tower.

        Raises:
          ValueError: if pictures are missing, cannot be read, or are not as many as their places.
        """
        x_BLD = self.wte(ids_BL)
        places = self.images_of(ids_BL)
        given = 0 if pixel_values is None else len(pixel_values)
        if self.visual is None:
            if given:
                raise ValueError("pixel_values given to a language model without a vision tower")
            return x_BLD
        if not places and not given:
            if self.training and any(parameter.requires_grad for parameter in self.visual.parameters()):
                # Distributed training needs a gradient of every parameter from every rank.
                side = self.visual.table_size
                nothing = self.visual(torch.zeros(1, 3, side, side, device=x_BLD.device))
                x_BLD = x_BLD + (nothing.mean() * 0).to(x_BLD.device, x_BLD.dtype)
            return x_BLD
        if pixel_values is None:
            if not all(place.path for place in places):
                raise ValueError("the prompt has images without a path; give their pixel_values")
            features_IQD = self.visual.encode([place.path for place in places])
        elif given != len(places):
            raise ValueError(f"pixel_values holds {given} images, the prompt has places for {len(places)}")
        else:
            features_IQD = self.visual(pixel_values)
        rows = torch.tensor([place.row for place in places], device=x_BLD.device)
        first = torch.tensor([place.first for place in places], device=x_BLD.device)
        columns_IQ = first[:, None] + torch.arange(self.visual.queries, device=x_BLD.device)
        x_BLD = x_BLD.clone()  # the embedding itself may be a leaf that needs its gradient
        x_BLD[rows[:, None], columns_IQ] = features_IQD.to(x_BLD.device, x_BLD.dtype)
        return x_BLD

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        cache=None,
        inputs_embeds=None,
        between: list[torch.Tensor] | None = None,
        weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, L, D] of `input_ids` [B, L] or of `inputs_embeds` [B, L, D].

        `attention_mask` covers what is cached, too. A list `between` gets what every block reads, a list `weights`
        its attention weights [B, N, L, cached + L].

        Raises:
          ValueError: see `embed`; for both inputs or none, or a cache of a kind that is not supported.
        """
        if getattr(cache, "is_compileable", False):
            raise ValueError("a static cache is not supported; leave cache_implementation at its default")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is not None and pixel_values is not None:
            raise ValueError(
                "inputs_embeds has no places for pixel_values; give input_ids, or inputs_embeds that hold the features"
            )
        past = cache.get_seq_length() if cache is not None else 0
        x_BLD = self.embed(input_ids, pixel_values) if inputs_embeds is None else inputs_embeds
        rows, length = x_BLD.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, device=x_BLD.device)
        if attention_mask.shape != (rows, past + length):
            raise ValueError(
                f"attention_mask must be [{rows}, {past + length}], one place for everything cached and given, not "
                f"{list(attention_mask.shape)}"
            )
        valid = attention_mask.to(x_BLD.device).bool()
        positions_BL = (valid.cumsum(-1) - 1).clamp(min=0)[:, past:]
        at = torch.arange(past + length, device=x_BLD.device)
        causal = at[past:, None] >= at
        # A padding place sees itself, so that its softmax has something to normalise; nothing reads the result.
        allowed = ((causal & valid[:, None, :]) | (at[past:, None] == at))[:, None]
        cos, sin = self._rotary(positions_BL, self._ntk_alpha(valid, past, cache))
        context = Context(cos, sin, allowed, self._logn(positions_BL, past + length), cache, weights is not None)
        for layer, block in enumerate(self.h):
            if between is not None:
                between.append(x_BLD)
            if self.gradient_checkpointing and self.training:
                x_BLD, seen = self._gradient_checkpointing_func(block.__call__, x_BLD, context, layer)
            else:
                x_BLD, seen = block(x_BLD, context, layer)
            if weights is not None:
                weights.append(seen)
        return self.ln_f(x_BLD)

    def _ntk_alpha(self, valid, past, cache):
        """One factor per row, from the prompt's length: 1 up to the trained length, 3 up to twice it, then 7, 15, ..

        Decoding keeps the prompt's factor, which lies on the cache because the cached keys were rotated with it.
        """
        base = self.config.seq_length
        if self.training or not self.config.use_dynamic_ntk:
            return torch.ones(len(valid), device=valid.device)
        if past and hasattr(cache, "ntk_alpha"):
            return cache.ntk_alpha.to(valid.device)
        lengths = valid.sum(-1).double().clamp(min=1)
        alpha = (2 ** torch.ceil(torch.log2(lengths / base) + 1) - 1).clamp(min=1).float()
        if cache is not None:
            cache.ntk_alpha = alpha
        return alpha

    def _rotary(self, positions_BL, alpha):
        size = self.config.kv_channels
        base = self.config.rotary_emb_base * alpha ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=positions_BL.device).float() / size
        angles = positions_BL[:, :, None].float() * base[:, None, None] ** -exponents
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    def _logn(self, positions_BL, columns: int):
        """Factor of every query, log(i) / log(trained length) at the 1-based position i beyond it."""
        base = self.config.seq_length
        if self.training or not self.config.use_logn_attn or columns <= base:
            return None
        factor = torch.log(positions_BL.float() + 1) / math.log(base)
        return torch.where(positions_BL >= base, factor, 1.0)[:, None, :, None]
