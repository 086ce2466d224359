"""Writes the JSON files that PyTorch needs in a release, with the released keys, and reads model sizes back from them.

Source: the released Qwen-VL and Qwen-VL-Chat files; for a full-size model all keys and values are equal to theirs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from qwenvl_jax import config as config_lib
from qwenvl_jax.config import DecoderConfig, ModelConfig, ResamplerConfig, VitConfig
from qwenvl_jax.config.model_schema import POSITIONS_PER_TRAIN_LENGTH
from qwenvl_jax.runtime.errors import UserError

# The files of `torch_model` that are copied into every release.
CODE_FILES = (
    "arguments_qwen.py",
    "chat_qwen.py",
    "configuration_qwen.py",
    "decoder_qwen.py",
    "grounding_qwen.py",
    "image_processing_qwen.py",
    "modeling_qwen.py",
    "qwen_generation_utils.py",
    "tokenization_qwen.py",
    "visual.py",
    "vocabulary_qwen.py",
)
# Sizes that the released code uses because they are not in its config.json.
DEFAULT_QUERIES = 256
DEFAULT_POSITION_GRID = 16
RELEASED_HEAD_SIZE = 128
RELEASED_NAME = "imported"  # the name of a model for which there is only a config.json
# The mean and standard deviation of CLIP, for RGB values in [0, 1] (released visual.py).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


def released_config(
    model: ModelConfig, *, image_size: int, image_start_id: int, dtype: str, scope: str = "all"
) -> dict[str, Any]:
    """The content of config.json.

    Args:
      model: the sizes.
      image_size: side length in pixels of the images that the checkpoint was last trained on.
      image_start_id: the id of `<img>`; those of `</img>` and `<imgpad>` follow it.
      dtype: of the stored tensors.
      scope: "all", "decoder" (without the key `visual`) or "vision" (with another model class).

    Raises:
      UserError: if the released format cannot express the model.
    """
    vit = model.vit
    resampler = model.resampler
    decoder = model.decoder
    if not vit.layer_norm_eps == resampler.layer_norm_eps == decoder.rms_norm_eps:
        raise UserError(
            "the released format has one layer_norm_epsilon; give vit, resampler and decoder of config.model the same"
        )
    if vit.window:
        raise UserError("the released format has no window attention; release a model with config.model.vit.window 0")
    visual: dict[str, Any] = {
        "heads": vit.heads,
        "image_size": image_size,
        "image_start_id": image_start_id,
        "layers": vit.layers,
        "mlp_ratio": _mlp_ratio(vit),
        "output_dim": decoder.width,
        "patch_size": vit.patch_size,
        "width": vit.width,
    }
    if resampler.queries != DEFAULT_QUERIES:
        visual["n_queries"] = resampler.queries
    if vit.position_grid != DEFAULT_POSITION_GRID:
        visual["position_grid"] = vit.position_grid
    if resampler.heads * RELEASED_HEAD_SIZE != decoder.width:
        visual["resampler_heads"] = resampler.heads
    content = {
        "_name_or_path": "./",
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": decoder.width,
        "initializer_range": model.decoder.initializer_range,
        "intermediate_size": 2 * decoder.mlp_dim,  # the released key is the sum of both branches
        "kv_channels": decoder.head_dim,
        "layer_norm_epsilon": decoder.rms_norm_eps,
        "max_position_embeddings": decoder.max_positions,
        "model_type": "qwen",
        "no_bias": True,  # but c_attn has a bias
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "onnx_safe": None,
        "rotary_emb_base": _integer_if_whole(decoder.rope_base),
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": decoder.train_length,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": dtype,
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_dynamic_ntk": decoder.dynamic_ntk,
        "use_flash_attn": False,
        "use_logn_attn": decoder.logn_attention,
        "visual": visual,
        "vocab_size": decoder.vocab_size,
    }
    if scope == "decoder":
        del content["visual"]
    if scope == "vision":
        content["architectures"] = ["QWenVisionModel"]
        content["auto_map"] = {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModel": "modeling_qwen.QWenVisionModel",
        }
    return content


def _integer_if_whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _mlp_ratio(vit: VitConfig) -> float:
    """The ratio with four decimals, rounded up so that int(width * ratio) is the hidden width (4.9231 at full size)."""
    ratio = math.ceil(vit.mlp_dim / vit.width * 10000) / 10000
    if int(vit.width * ratio) != vit.mlp_dim:
        raise UserError(
            f"the released format stores config.model.vit.mlp_dim as a multiple of the width {vit.width} with four "
            f"decimals, and {vit.mlp_dim} cannot be written like this; choose another"
        )
    return ratio


def model_from_released(content: Mapping[str, Any], where: str) -> ModelConfig:
    """The model sizes in the config.json of a release.

    The file does not contain our name of the model (which is in training_config.json), so `name` is RELEASED_NAME.

    Args:
      content: of config.json.
      where: the path of the file, for errors.

    Raises:
      UserError: if a key is missing or has a value that this architecture does not support.
    """
    try:
        visual = content["visual"]
        model = ModelConfig(
            name=RELEASED_NAME,
            vit=VitConfig(
                width=visual["width"],
                layers=visual["layers"],
                heads=visual["heads"],
                mlp_dim=int(visual["width"] * visual["mlp_ratio"]),
                patch_size=visual["patch_size"],
                position_grid=visual.get("position_grid", DEFAULT_POSITION_GRID),
                layer_norm_eps=float(content["layer_norm_epsilon"]),
            ),
            resampler=ResamplerConfig(
                query_grid=math.isqrt(visual.get("n_queries", DEFAULT_QUERIES)),
                heads=visual.get("resampler_heads", max(1, visual["output_dim"] // RELEASED_HEAD_SIZE)),
                layer_norm_eps=float(content["layer_norm_epsilon"]),
            ),
            decoder=DecoderConfig(
                vocab_size=content["vocab_size"],
                width=content["hidden_size"],
                layers=content["num_hidden_layers"],
                heads=content["num_attention_heads"],
                mlp_dim=content["intermediate_size"] // 2,
                rope_base=float(content["rotary_emb_base"]),
                rms_norm_eps=float(content["layer_norm_epsilon"]),
                train_length=content["seq_length"],
                logn_attention=bool(content["use_logn_attn"]),
                dynamic_ntk=bool(content["use_dynamic_ntk"]),
            ),
        )
        model = config_lib.from_config_dict(ModelConfig, dataclasses.asdict(model), where)
    except KeyError as error:
        raise UserError(f"{where} lacks the key {error}; it is not the config of a Qwen-VL release") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} has a value of the wrong kind ({error}); it is not the config of a release") from None
    if visual["output_dim"] != model.decoder.width:
        raise UserError(f"{where}: visual.output_dim {visual['output_dim']} is not hidden_size {model.decoder.width}")
    if content.get("tie_word_embeddings"):
        raise UserError(f"{where} ties the word embeddings, so it is not the config of a Qwen-VL release")
    return config_lib.validate(model, "config.model")


def untrained_config(
    model: ModelConfig, tokenizer: config_lib.TokenizerConfig, *, image_size: int, stage: str
) -> config_lib.Config:
    """A config for weights that were not trained here; data, schedule and mesh are placeholders.

    Args:
      model: the architecture.
      tokenizer: its vocabulary.
      image_size: side length in pixels of the images that it was last trained on.
      stage: the one of `config.STAGES` whose prompt format the weights were trained with.
    """
    return config_lib.Config(
        model=model,
        tokenizer=tokenizer,
        data=config_lib.DataConfig((), image_size, model.decoder.train_length, 1, 1, 0.0, 1, 0),
        optimizer=config_lib.OptimizerConfig(0.0, 0.0, 0, 0.9, 0.98, 1e-6, 0.0, 1.0, 1.0),
        init=config_lib.InitConfig("", "", "", ""),
        train=config_lib.TrainConfig(stage, (), 0, 0, 1, 1, 1),
        mesh=config_lib.MeshConfig(-1, 1, 1, 1, 0),
        compute=config_lib.ComputeConfig("bfloat16", "bfloat16", "auto", "none", "none", False, 4096),
    )


def generation_config(*, stage: str, end_id: int) -> dict[str, Any]:
    """The content of generation_config.json. The chat format is `chatml` after fine-tuning, otherwise `raw`."""
    chat = stage == "sft"
    return {
        "chat_format": "chatml" if chat else "raw",
        "do_sample": True,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "top_k": 0,
        "top_p": 0.3 if chat else 0.5,
    }


def tokenizer_config(*, train_length: int, image_slots: int) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    Args:
      train_length: of the decoder; `model_max_length` is four times as much, as in the released file.
      image_slots: the number of ids between `<img>` and `</img>`; written only if it is not the released 256.
    """
    content: dict[str, Any] = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "model_max_length": POSITIONS_PER_TRAIN_LENGTH * train_length,
        "tokenizer_class": "QWenTokenizer",
    }
    if image_slots != DEFAULT_QUERIES:
        content["image_slots"] = image_slots
    return content


def preprocessor_config(image_size: int) -> dict[str, Any]:
    """The content of preprocessor_config.json: the class of the processor, and a description for other programs."""
    return {
        "auto_map": {"AutoImageProcessor": "image_processing_qwen.QWenImageProcessor"},
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "QWenImageProcessor",
        "image_std": list(IMAGE_STD),
        "resample": BICUBIC,
        "size": {"height": image_size, "width": image_size},
    }
