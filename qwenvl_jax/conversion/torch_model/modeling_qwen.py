"""Qwen-VL in PyTorch: the language model with images in its input, `generate`, `chat`, and the vision tower alone.

In `input_ids` an image is `<img>`, Q slots, `</img>`. The slots contain either the bytes of a path or URL, one id per
byte, padded with `<imgpad>` (the tokenizer encodes `<img>path</img>` like this), or only `<imgpad>`. In the second case
`pixel_values` contains the images in the format of `visual.preprocess`, row by row in order of appearance. Tensor names
and layouts are the released ones.

Legend: B rows, L tokens, I images, Q slots of an image, D width, V vocabulary.
"""
# The annotations of transformers contradict one another here:
# mypy: disable-error-code="misc, override, assignment, arg-type"

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from .arguments_qwen import one_cache, refuse_unknown
from .chat_qwen import ChatMixin
from .configuration_qwen import QWenConfig
from .decoder_qwen import CACHE_FIELD, QWenModel, RMSNorm

# The published file has these names, too. transformers copies only the files that this one imports.
from .qwen_generation_utils import (  # noqa: F401
    HistoryType,
    StopWordsLogitsProcessor,
    decode_tokens,
    get_stop_words_ids,
    make_context,
)
from .visual import VisionTransformer, init_weights


class QWenPreTrainedModel(PreTrainedModel):
    """Base class of both models: configuration and initialisation."""

    config_class = QWenConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # The tower must not be split: parameters of the tower itself (`proj`, the position table) act on its activations.
    _no_split_modules = ["QWenBlock", "VisionTransformer"]  # noqa: RUF012

    def _take_precision(self) -> None:
        """Casts the weights if the config (or `from_pretrained`) has `bf16=True`, `fp16=True` or `fp32=True`.

        Raises:
          ValueError: if more than one of them is set.
        """
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        chosen = [name for name in dtypes if getattr(self.config, name, False)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude one another; set one of them, or only dtype")
        if chosen:
            self.to(dtypes[chosen[0]])

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if getattr(module, "joins_residual", False):
            std /= math.sqrt(2 * self.config.num_hidden_layers)
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
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
        self._take_precision()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_logits_to_keep: int = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **unknown: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Computes logits [B, L, V] and, if `labels` are given, the loss.

        Args:
          input_ids: [B, L].
          past_key_values: a cache of transformers.
          attention_mask: [B, cached + L], 0 for padding, which may be on either side.
          pixel_values: [I, 3, size, size]; not needed if the prompt contains the paths of its images.
          cache: the newer name of `past_key_values`.
          inputs_embeds: [B, L, D] instead of `input_ids`; it must already contain the image features.
          labels: [B, L], -100 for unsupervised tokens. The output then has `loss`, the mean cross-entropy of the
            labels shifted by one.
          use_cache: whether the output has a cache; None means the value of the config, and False in training.
          logits_to_keep: if not 0, only the logits of this many last tokens are computed.
          num_logits_to_keep: the older name of `logits_to_keep`.
          output_attentions: whether the output has `attentions`, one [B, N, L, cached + L] per block.
          output_hidden_states: whether the output has `hidden_states`: the input of every block, and the output of the
            final norm.
          return_dict: False returns a tuple.
          num_items_in_batch: if given, the summed cross-entropy is divided by it. A Trainer that accumulates gradients
            passes it.
          unknown: see `QWenModel.forward`.

        Raises:
          ValueError: see `QWenModel.forward`.
          TypeError: if an argument is unknown.
        """
        states = self.transformer(
            input_ids,
            past_key_values,
            attention_mask,
            pixel_values=pixel_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **unknown,
        )
        hidden = states.last_hidden_state
        keep = 0 if labels is not None else logits_to_keep or num_logits_to_keep
        logits = self.lm_head(hidden[:, -keep:])
        loss = None
        if labels is not None:
            total = "mean" if num_items_in_batch is None else "sum"
            targets = labels[:, 1:].flatten().to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction=total)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=states.hidden_states,
            attentions=states.attentions,
            **{CACHE_FIELD: states.get(CACHE_FIELD)},
        )
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache_position: Any = None,
        cache: Any = None,
        pixel_values: torch.Tensor | None = None,
        use_cache: bool | None = True,
        next_sequence_length: Any = None,
        is_first_iteration: Any = None,
        logits_to_keep: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next step of `generate`: all tokens that are not cached yet.

        Their number follows from the mask and the cache. `next_sequence_length`, `cache_position` and
        `is_first_iteration` repeat it in some versions of transformers, and `tokenizer` is passed if `generate` has
        stop strings; all four are ignored. An argument that a later version adds is an error, because ignoring it
        could silently compute something else.
        """
        # The name `kwargs` makes transformers accept the arguments of `forward`, and no others, in `generate`.
        refuse_unknown("prepare_inputs_for_generation", kwargs)
        cache = one_cache(past_key_values, cache)
        past = cache.get_seq_length() if cache is not None else 0
        embedded = inputs_embeds.shape[1] if inputs_embeds is not None else 0
        total = attention_mask.shape[1] if attention_mask is not None else embedded + input_ids.shape[1]
        if past >= total:
            raise ValueError(f"the cache holds {past} tokens and the prompt has {total}; add at least one new token")
        new_ids = input_ids[:, max(0, input_ids.shape[1] - (total - past)) :]
        embeds = None
        if inputs_embeds is not None and not past:
            grown = self.transformer.wte(input_ids[:, input_ids.shape[1] - (total - embedded) :])
            embeds = torch.cat((inputs_embeds, grown.to(inputs_embeds.dtype)), dim=1)
        return {
            "input_ids": new_ids if embeds is None else None,
            "inputs_embeds": embeds,
            "attention_mask": attention_mask,
            # Images are encoded once, but the continuation of a cached conversation may have new ones.
            "pixel_values": pixel_values if not past or self.transformer.images_of(new_ids) else None,
            "past_key_values": cache,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 1,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeats the rows for beams and for several answers, and with every row its images in their order."""
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1 and input_ids is not None:
            slots = self.transformer.images_of(input_ids)
            if len(slots) == len(pixels):  # otherwise `forward` raises the error
                repeated: list[int] = []
                for row in range(len(input_ids)):
                    repeated += [index for index, image in enumerate(slots) if image.row == row] * expand_size
                pixels = pixels[repeated]
        expand = super()._expand_inputs_for_generation
        input_ids, model_kwargs = expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, model_kwargs if pixels is None else {**model_kwargs, "pixel_values": pixels}


class QWenVisionModel(QWenPreTrainedModel):
    """The vision tower and resampler alone: from pixels to the features that the decoder reads."""

    main_input_name = "pixel_values"
    # The release of a whole model can be loaded, too.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^transformer\.(?!visual\.)"]  # noqa: RUF012

    def __init__(self, config: QWenConfig):
        super().__init__(config)
        if not config.visual:
            raise ValueError("the config has no `visual`: it belongs to a language model without a vision tower")
        visual = VisionTransformer(config.visual, config.layer_norm_epsilon)
        self.transformer = nn.ModuleDict({"visual": visual})  # so that the tensors have their released names
        self.post_init()
        self._take_precision()

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **unknown: Any
    ) -> BaseModelOutput | tuple[torch.Tensor]:
        """Pixels [I, 3, size, size] in the format of `visual.preprocess` -> `last_hidden_state` [I, Q, D].

        Raises:
          TypeError: if an argument is unknown.
        """
        refuse_unknown("forward", unknown)
        output = BaseModelOutput(last_hidden_state=self.transformer["visual"](pixel_values))
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
