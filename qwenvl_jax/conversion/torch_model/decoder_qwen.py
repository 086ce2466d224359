"""The decoder of Qwen-VL: token embeddings with image features in the image slots, decoder blocks, final norm.

Legend: B rows, L tokens, I images, Q slots of an image, D width, N heads, K head size.
"""

# mypy: disable-error-code="arg-type"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .arguments_qwen import check_settings, one_cache, refuse_unknown
from .configuration_qwen import QWenConfig
from .visual import VisionTransformer

# Newer versions of transformers 5 renamed `past_key_values` to `cache`, in arguments and in outputs.
CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class ImageSlots(NamedTuple):
    """The slots of one image.

    Attributes:
      row: the row of the batch.
      first: the column of the first slot.
      path: the path or URL written into the slots, or "".
    """

    row: int
    first: int
    path: str


def find_images(ids_BL: torch.Tensor, start: int, queries: int) -> list[ImageSlots]:
    """Finds the images in a batch of token ids, row by row.

    Only path bytes and `<imgpad>` between `<img>` and `</img>` make an image; anything else there is text.

    Args:
      ids_BL: token ids.
      start: the id of `<img>`; those of `</img>` and `<imgpad>` follow it.
      queries: the number of slots that every image must have.

    Raises:
      ValueError: if an image is truncated, has another number of slots, or has a path that leaves no slot for
        `<imgpad>`.
    """
    end = start + 1
    pad = start + 2
    images: list[ImageSlots] = []
    if ids_BL.shape[1] < 2 or not bool((ids_BL == start).any()):
        return images
    for row, ids in enumerate(ids_BL.tolist()):
        for first in (column + 1 for column, token in enumerate(ids) if token == start):
            closed = end in ids[first:]
            inner = ids[first : ids.index(end, first)] if closed else ids[first:]
            padded = pad in inner
            path = inner[: inner.index(pad)] if padded else inner
            if not all(token < 256 for token in path) or any(token != pad for token in inner[len(path) :]):
                if padded:
                    raise ValueError(f"row {row} mixes text and <imgpad> between <img> and </img>; give a path instead")
                continue
            name = bytes(path).decode("utf-8", "surrogateescape")
            if closed and not padded and len(inner) == queries:
                raise ValueError(
                    f"the path {name!r} fills all {queries} slots of its image; use a path of at most {queries - 2} "
                    "bytes, or write <img></img> and pass pixel_values"
                )
            if padded and not (closed and len(inner) == queries):
                raise ValueError(
                    f"an image in row {row} has {len(inner)} slots{'' if closed else ' before the row ends'}, but this "
                    f"model needs {queries}; use this model's tokenizer, without truncation"
                )
            if padded:
                images.append(ImageSlots(row, first, name))
    return images


class Context(NamedTuple):
    """Inputs that all blocks of one forward pass share.

    Attributes:
      cos: cosines of the rotary angles, [B, 1, L, K] float32.
      sin: sines of the rotary angles, [B, 1, L, K] float32.
      allowed: the attention mask, [B, 1, L, cached + L] bool.
      query_scale: the factors of log-n attention, [B, 1, L, 1], or None.
      cache: a cache of transformers, or None.
      with_weights: whether the blocks return their attention weights.
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
        return normed.to(x.dtype) * self.weight  # cast before the product, as the released code does


def _rotate(x_BNLK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = x_BNLK.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BNLK.dtype)


class QWenAttention(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        width = config.num_attention_heads * config.kv_channels
        self.heads = config.num_attention_heads
        self.attn_dropout = nn.Dropout(config.attn_dropout_prob)
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)  # has a bias even though `no_bias` is true
        self.c_proj = _residual(nn.Linear(width, config.hidden_size, bias=False))

    def forward(self, x_BLD: torch.Tensor, context: Context, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, length, _ = x_BLD.shape
        q, k, v = self.c_attn(x_BLD).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = _rotate(q, context.cos, context.sin)
        k = _rotate(k, context.cos, context.sin)
        if context.cache is not None:
            k, v = context.cache.update(k, v, layer)
        if context.query_scale is not None:
            q = q * context.query_scale.to(q.dtype)
        weights = None
        if context.with_weights:
            scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~context.allowed, -math.inf)
            weights = self.attn_dropout(scores.float().softmax(-1).to(q.dtype))
            mixed = weights @ v
        else:
            dropout = self.attn_dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=context.allowed, dropout_p=dropout)
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
    """Marks a layer whose output is added to the residual stream, so that `_init_weights` scales it down.

    The mark is on the layer itself because newer versions of transformers do not pass on its parent modules.
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

    def forward(self, x_BLD: torch.Tensor, context: Context, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        mixed_BLD, weights = self.attn(self.ln_1(x_BLD), context, layer)
        x_BLD = x_BLD + mixed_BLD
        return x_BLD + self.mlp(self.ln_2(x_BLD)), weights


class QWenModel(nn.Module):
    """Embeddings with image features in their slots, decoder blocks, final norm.

    `visual` is the vision tower, or None if the config has none.
    """

    gradient_checkpointing = False  # set by transformers, as is the function
    _gradient_checkpointing_func: Any

    def __init__(self, config: QWenConfig):
        super().__init__()
        check_settings(config)
        self.config = config
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(QWenBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTransformer(config.visual, config.layer_norm_epsilon) if config.visual else None

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value  # type: ignore[assignment]

    def images_of(self, ids_BL: torch.Tensor) -> list[ImageSlots]:
        """The result of `find_images`; an empty list if the model has no vision tower."""
        if self.visual is None:
            return []
        return find_images(ids_BL, self.config.visual["image_start_id"], self.visual.queries)

    def embed(self, ids_BL: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Input embeddings [B, L, D] with the features of every image in its slots.

        All images are encoded in one call of the vision tower.

        Raises:
          ValueError: if an image is missing or cannot be read, or if `pixel_values` has another number of images than
            `ids_BL`.
        """
        x_BLD = self.wte(ids_BL)
        images = self.images_of(ids_BL)
        given = 0 if pixel_values is None else len(pixel_values)
        if self.visual is None:
            if given:
                raise ValueError("a language model without a vision tower takes no pixel_values")
            return x_BLD
        if not images and not given:
            if self.training and any(parameter.requires_grad for parameter in self.visual.parameters()):
                # Distributed training needs a gradient for every parameter on every rank.
                side = self.visual.table_size
                unused = self.visual(torch.zeros(1, 3, side, side, device=x_BLD.device))
                x_BLD = x_BLD + (unused.mean() * 0).to(x_BLD.device, x_BLD.dtype)
            return x_BLD
        if pixel_values is None:
            if not all(image.path for image in images):
                raise ValueError("the prompt has images without a path; pass their pixel_values")
            features_IQD = self.visual.encode([image.path for image in images])
        elif given != len(images):
            raise ValueError(f"pixel_values has {given} images, but the prompt has {len(images)}")
        else:
            features_IQD = self.visual(pixel_values)
        rows = torch.tensor([image.row for image in images], device=x_BLD.device)
        first = torch.tensor([image.first for image in images], device=x_BLD.device)
        columns_IQ = first[:, None] + torch.arange(self.visual.queries, device=x_BLD.device)
        x_BLD = x_BLD.clone()  # autograd forbids writing into the embedding if it is a leaf that requires a gradient
        x_BLD[rows[:, None], columns_IQ] = features_IQD.to(x_BLD.device, x_BLD.dtype)
        return x_BLD

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Computes `last_hidden_state` [B, L, D] for `input_ids` [B, L] or `inputs_embeds` [B, L, D].

        Args:
          input_ids: [B, L].
          past_key_values: a dynamic cache of transformers, or None.
          attention_mask: [B, cached + L]; it includes the cached tokens.
          pixel_values: see `QWenLMHeadModel.forward`.
          cache: the newer name of `past_key_values`.
          inputs_embeds: [B, L, D].
          use_cache: see there, as for the other arguments.
          output_attentions: see there.
          output_hidden_states: see there.
          return_dict: see there.
          unknown: arguments of other versions of transformers and of the published code; they must be None or False,
            and `token_type_ids` may be zeros.

        Raises:
          ValueError: as `embed` does; also if both inputs or neither are given, the mask has another shape, or the
            cache is static.
          TypeError: if an argument is unknown.
        """
        refuse_unknown("forward", unknown)
        config = self.config
        cache = one_cache(past_key_values, cache)
        use_cache = config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache()
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        wanted = {name: getattr(config, name, False) if value is None else value for name, value in asked.items()}
        between: list[torch.Tensor] | None = [] if wanted["output_hidden_states"] else None
        weights: list[torch.Tensor] | None = [] if wanted["output_attentions"] else None
        hidden = self._hidden(input_ids, attention_mask, pixel_values, cache, inputs_embeds, between, weights)
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=None if between is None else (*between, hidden),
            attentions=None if weights is None else tuple(weights),
            **{CACHE_FIELD: cache if use_cache else None},
        )
        as_dict = getattr(config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _hidden(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        cache: Any,
        inputs_embeds: torch.Tensor | None,
        between: list[torch.Tensor] | None,
        weights: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        """Hidden states [B, L, D] after the final norm.

        If given, `between` gets the input of every block, and `weights` its attention weights [B, N, L, cached + L].
        """
        if getattr(cache, "is_compileable", False):
            raise ValueError("a static cache is not supported; leave cache_implementation at its default")
        if input_ids is not None and inputs_embeds is None:
            x_BLD = self.embed(input_ids, pixel_values)
        elif inputs_embeds is not None and input_ids is None:
            x_BLD = inputs_embeds
        else:
            raise ValueError("pass either input_ids or inputs_embeds")
        if inputs_embeds is not None and pixel_values is not None:
            raise ValueError(
                "pixel_values cannot be combined with inputs_embeds; pass input_ids, or inputs_embeds that already "
                "contain the image features"
            )
        past = cache.get_seq_length() if cache is not None else 0
        rows, length = x_BLD.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, device=x_BLD.device)
        if attention_mask.shape != (rows, past + length):
            raise ValueError(
                f"attention_mask must have shape [{rows}, {past + length}] (cached plus new tokens), not "
                f"{list(attention_mask.shape)}"
            )
        valid = attention_mask.to(x_BLD.device).bool()
        positions_BL = (valid.cumsum(-1) - 1).clamp(min=0)[:, past:]
        index = torch.arange(past + length, device=x_BLD.device)
        causal = index[past:, None] >= index
        # A padding token attends to itself because a softmax over nothing is NaN. Its output is never used.
        allowed = ((causal & valid[:, None, :]) | (index[past:, None] == index))[:, None]
        cos, sin = self._rotary(positions_BL, self._ntk_alpha(valid, past, cache))
        context = Context(cos, sin, allowed, self._logn(positions_BL, past + length), cache, weights is not None)
        x_BLD = self.drop(x_BLD)
        for layer, block in enumerate(self.h):
            if between is not None:
                between.append(x_BLD)
            if self.gradient_checkpointing and self.training:
                x_BLD, attention = self._gradient_checkpointing_func(block.__call__, x_BLD, context, layer)
            else:
                x_BLD, attention = block(x_BLD, context, layer)
            if weights is not None:
                weights.append(attention)
        return self.ln_f(x_BLD)

    def _ntk_alpha(self, valid: torch.Tensor, past: int, cache: Any) -> torch.Tensor:
        """The dynamic NTK factor of every row: 1 up to the trained length, 3 up to twice that length, then 7, 15, ...

        It depends on the length of the prompt and stays the same while decoding. It is stored on the cache, whose keys
        were rotated with it.
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

    def _rotary(self, positions_BL: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.config.kv_channels
        base = self.config.rotary_emb_base * alpha ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=positions_BL.device).float() / size
        angles = positions_BL[:, :, None].float() * base[:, None, None] ** -exponents
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    def _logn(self, positions_BL: torch.Tensor, columns: int) -> torch.Tensor | None:
        """The log-n factor of every query: log(i) / log(trained length) at a 1-based position i beyond that length."""
        base = self.config.seq_length
        if self.training or not self.config.use_logn_attn or columns <= base:
            return None
        factor = torch.log(positions_BL.float() + 1) / math.log(base)
        return torch.where(positions_BL >= base, factor, 1.0)[:, None, :, None]
