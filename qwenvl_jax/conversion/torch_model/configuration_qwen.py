"""QWenConfig: the sizes of a Qwen-VL model under the released key names."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# The values of the released model. Its config.json states all of them.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "no_bias": True,  # but c_attn has a bias
    "scale_attn_weights": True,
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "use_logn_attn": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": False,
    "onnx_safe": None,
    "initializer_range": 0.02,
    "use_cache": True,
    # At most one of these may be true: it then sets the dtype of the weights in `from_pretrained`.
    "bf16": False,
    "fp16": False,
    "fp32": False,
}


class QWenConfig(PretrainedConfig):
    """The sizes of the decoder and the vision tower.

    Args:
      visual: the vision tower: `width, layers, heads, mlp_ratio, patch_size, image_size` (side length in pixels),
        `output_dim` (the decoder's width) and `image_start_id` (the id of `<img>`; those of `</img>` and `<imgpad>`
        follow it). Optional keys, which the released file omits, are `n_queries` (default 256), `position_grid` (16)
        and `resampler_heads` (output_dim / 128). None or an empty dict means a language model without vision tower.
      values: the keys of DEFAULTS and the arguments of PretrainedConfig. `intermediate_size` is the sum of both
        branches of the MLP; `seq_length` is the trained length, beyond which log-n attention and dynamic NTK apply.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, visual: dict[str, Any] | None = None, **values: Any):
        for name, default in DEFAULTS.items():
            setattr(self, name, values.pop(name, default))
        self.visual = dict(visual or {})
        values.setdefault("tie_word_embeddings", False)
        super().__init__(**values)
