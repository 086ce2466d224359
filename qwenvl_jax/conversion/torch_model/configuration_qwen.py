"""QWenConfig: the sizes of a Qwen-VL model under the released key names."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# The released model's values, all of which its config.json states.
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
    # The dtype of the weights, where `from_pretrained` shall decide it: one of them at most.
    "bf16": False,
    "fp16": False,
    "fp32": False,
}


class QWenConfig(PretrainedConfig):
    """Sizes of decoder and vision tower.

    Args:
      visual: of the vision tower: `width, layers, heads, mlp_ratio, patch_size, image_size` (pixels of a side),
        `output_dim` (the decoder's width) and `image_start_id` (of `<img>`; `</img>` and `<imgpad>` follow it). It may
        add `n_queries`, `position_grid` and `resampler_heads`, which the released file leaves to their defaults: 256,
        16 and output_dim / 128. None or empty: a language model alone.
      values: the keys of DEFAULTS and those of every PretrainedConfig. `intermediate_size` is the sum of both
        branches of the MLP; `seq_length` is the trained length, beyond which log-n attention and dynamic NTK act.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, visual: dict[str, Any] | None = None, **values: Any):
        for name, default in DEFAULTS.items():
            setattr(self, name, values.pop(name, default))
        self.visual = dict(visual or {})
        values.setdefault("tie_word_embeddings", False)
        super().__init__(**values)
