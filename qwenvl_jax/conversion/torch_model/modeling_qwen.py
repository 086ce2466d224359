"""Qwen-VL in PyTorch: the decoder with pictures in its input, `generate`, `chat`, and the vision tower alone.

A picture stands in `input_ids` as `<img>`, Q slots, `</img>`. The slots hold either the bytes of a path or URL, one id
per byte and then `<imgpad>` (as the tokenizer writes `<img>path</img>`), or `<imgpad>` throughout, and then
`pixel_values` holds the pictures, row by row and in order of appearance, as `visual.preprocess` makes them. Tensor
names and layouts are the released ones.

B rows, L tokens, I images, Q slots, D width, N heads, K head size, V vocabulary.
"""
# transformers' own annotations contradict one another here:
# mypy: disable-error-code="misc, override, assignment, arg-type"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from .configuration_qwen import QWenConfig
from .qwen_generation_utils import ChatMixin
from .visual import VisionTransformer, init_weights, preprocess, read_image


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
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x_BLD, cos, sin, allowed, query_scale, cache, layer):
        rows, length, _ = x_BLD.shape
        q, k, v = self.c_attn(x_BLD).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        if query_scale is not None:
            q = q * query_scale.to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class QWenMLP(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        hidden = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.w2 = nn.Linear(config.hidden_size, hidden, bias=False)
        self.c_proj = nn.Linear(hidden, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class QWenBlock(nn.Module):
    def __init__(self, config: QWenConfig):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, x_BLD, *context):
        x_BLD = x_BLD + self.attn(self.ln_1(x_BLD), *context)
        return x_BLD + self.mlp(self.ln_2(x_BLD))


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
            images = [read_image(place.path) for place in places]
            pixel_values = preprocess(images, self.config.visual["image_size"])
        elif given != len(places):
            raise ValueError(f"pixel_values holds {given} images, the prompt has places for {len(places)}")
        features_IQD = self.visual(pixel_values)
        rows = torch.tensor([place.row for place in places], device=x_BLD.device)
        first = torch.tensor([place.first for place in places], device=x_BLD.device)
        columns_IQ = first[:, None] + torch.arange(self.visual.queries, device=x_BLD.device)
        x_BLD = x_BLD.clone()  # the embedding itself may be a leaf that needs its gradient
        x_BLD[rows[:, None], columns_IQ] = features_IQD.to(x_BLD.device, x_BLD.dtype)
        return x_BLD

    def forward(self, input_ids, attention_mask=None, pixel_values=None, cache=None, between=None) -> torch.Tensor:
        """Hidden states [B, L, D] of `input_ids` [B, L]; `attention_mask` covers what is cached, too.

        A list `between` gets what every block reads, too.
        """
        if getattr(cache, "is_compileable", False):
            raise ValueError("a static cache is not supported; leave cache_implementation at its default")
        past = cache.get_seq_length() if cache is not None else 0
        x_BLD = self.embed(input_ids, pixel_values)
        rows, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, device=x_BLD.device)
        valid = attention_mask.to(x_BLD.device).bool()
        positions_BL = (valid.cumsum(-1) - 1).clamp(min=0)[:, past:]
        at = torch.arange(past + length, device=x_BLD.device)
        causal = at[past:, None] >= at
        # A padding place sees itself, so that its softmax has something to normalise; nothing reads the result.
        allowed = ((causal & valid[:, None, :]) | (at[past:, None] == at))[:, None]
        cos, sin = self._rotary(positions_BL, self._ntk_alpha(valid, past, cache))
        scale = self._logn(positions_BL, past + length)
        for layer, block in enumerate(self.h):
            context = (cos, sin, allowed, scale, cache, layer)
            if between is not None:
                between.append(x_BLD)
            if self.gradient_checkpointing and self.training:
                x_BLD = self._gradient_checkpointing_func(block.__call__, x_BLD, *context)
            else:
                x_BLD = block(x_BLD, *context)
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


class QWenPreTrainedModel(PreTrainedModel):
    """What both models share: configuration and initial values."""

    config_class = QWenConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # The tower whole, because its own parameters (`proj`, the position table) meet its blocks' outputs.
    _no_split_modules = ["QWenBlock", "VisionTransformer"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, QWenAttention | QWenMLP):  # runs after the Linear inside
            nn.init.normal_(module.c_proj.weight, std=std / math.sqrt(2 * self.config.num_hidden_layers))
        else:
            init_weights(module, std)


class QWenLMHeadModel(QWenPreTrainedModel, ChatMixin, GenerationMixin):
    """The causal language model with `generate` and `chat`."""

    base_model_prefix = "transformer"
    main_input_name = "input_ids"

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, V]; the last `logits_to_keep` (older name: `num_logits_to_keep`) of them if that is not 0.

        Args:
          input_ids: [B, L].
          attention_mask: [B, cached + L], 0 for padding on either side.
          pixel_values: [I, 3, size, size]; not needed where the prompt holds paths.
          labels: [B, L], -100 where not supervised. Adds `loss`, the mean cross-entropy, shifted by one.
          output_hidden_states: adds `hidden_states`: the input of every block, and the final norm's output.
          num_items_in_batch: what a Trainer that accumulates gradients divides the summed cross-entropy by instead.

        Raises:
          ValueError: see `QWenModel.embed`.
        """
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        between: list[torch.Tensor] | None = [] if output_hidden_states else None
        hidden = self.transformer(input_ids, attention_mask, pixel_values, past_key_values, between)
        keep = 0 if labels is not None else logits_to_keep or num_logits_to_keep
        logits = self.lm_head(hidden[:, -keep:])
        loss = None
        if labels is not None:
            total = "mean" if num_items_in_batch is None else "sum"
            targets = labels[:, 1:].flatten().to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction=total)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if between is None else (*between, hidden),
        )

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, pixel_values=None, use_cache=True, **kwargs
    ):
        # transformers reads `kwargs` as: what `forward` names may be given to `generate`, and nothing else.
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, past:],
            "attention_mask": attention_mask,
            # Pictures are encoded once; what continues a cached conversation may bring new ones.
            "pixel_values": pixel_values if not past or self.transformer.images_of(input_ids[:, past:]) else None,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """For beams and several answers rows are repeated, and with them the pictures of each row, in their order."""
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1 and input_ids is not None:
            rows = [place.row for place in self.transformer.images_of(input_ids)]
            if len(rows) == len(pixels):  # otherwise `forward` says what is wrong
                own = [[k for k, row in enumerate(rows) if row == wanted] for wanted in range(len(input_ids))]
                pixels = pixels[[k for images in own for _ in range(expand_size) for k in images]]
        expand = super()._expand_inputs_for_generation
        input_ids, model_kwargs = expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, model_kwargs if pixels is None else {**model_kwargs, "pixel_values": pixels}


class QWenVisionModel(QWenPreTrainedModel):
    """Vision tower and resampler alone: pictures to what the decoder reads in their place."""

    main_input_name = "pixel_values"
    # A whole release loads, too.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^transformer\.(?!visual\.)"]  # noqa: RUF012

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        if not config.visual:
            raise ValueError("the config has no `visual`; this is a language model without a vision tower")
        visual = VisionTransformer(config.visual, config.layer_norm_epsilon)
        self.transformer = nn.ModuleDict({"visual": visual})  # gives the tensors their released names
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **unused: Any) -> BaseModelOutput:
        """Pixels [I, 3, size, size], as `visual.preprocess` makes them -> `last_hidden_state` [I, Q, D]."""
        return BaseModelOutput(last_hidden_state=self.transformer["visual"](pixel_values))
