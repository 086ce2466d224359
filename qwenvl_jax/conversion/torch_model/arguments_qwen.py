"""Arguments and settings that the model does not support: none of them is ignored."""

from __future__ import annotations

import warnings
from typing import Any

import torch

# Settings of the published config that change the computation, with the only value that this code supports.
FIXED_SETTINGS = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True}
# Settings of the same family that only change the speed or the memory.
UNUSED_SETTINGS = ("onnx_safe", "softmax_in_fp32", "use_cache_kernel", "use_cache_quantization")


def refuse_unknown(method: str, arguments: dict[str, Any]) -> None:
    """Raises TypeError if `arguments`, which `method` does not take, contain a value other than None or False.

    `token_type_ids` may also be zeros.
    """
    given = [name for name, value in arguments.items() if value is not None and value is not False]
    if "position_ids" in given:
        raise TypeError(f"{method} takes no position_ids: positions follow from attention_mask; leave them out")
    types = arguments.get("token_type_ids")
    if isinstance(types, torch.Tensor) and not types.any():
        given.remove("token_type_ids")
    if given:
        raise TypeError(
            f"{method} does not know the argument {given[0]!r}; leave it out, or use a version of transformers that is "
            "named in the model card"
        )


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """The cache, passed under either of its names.

    Raises:
      ValueError: if two different caches are passed.
      TypeError: if it is a tuple, as in old versions of transformers.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of one argument; pass only one of them")
    chosen = past_key_values if cache is None else cache
    if chosen is not None and not hasattr(chosen, "get_seq_length"):
        raise TypeError(f"past_key_values must be a cache of transformers, such as DynamicCache(), not {type(chosen)}")
    return chosen


def check_settings(config: Any) -> None:
    """Warns of settings that have no effect.

    Raises:
      ValueError: if a setting asks for another computation than this code's.
    """
    for name, supported in FIXED_SETTINGS.items():
        if (value := getattr(config, name, supported)) != supported:
            raise ValueError(f"config.{name} is {value!r}, but this code supports only {supported!r}")
    unused = [name for name in UNUSED_SETTINGS if getattr(config, name, None)]
    if getattr(config, "use_flash_attn", False) is True:
        unused.append("use_flash_attn (PyTorch chooses the kernel of scaled_dot_product_attention)")
    for name in unused:
        warnings.warn(f"this setting of the config has no effect: {name}", stacklevel=2)
