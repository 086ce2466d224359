"""The JSON files of a release that its PyTorch side reads, under the released key names, and sizes back from them.

Source: the released Qwen-VL and Qwen-VL-Chat files; a full-size model gives their values key for key.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from qwenvl_jax import config as config_lib
from qwenvl_jax.config import DecoderConfig, ModelConfig, ResamplerConfig, VitConfig
from qwenvl_jax.runtime.errors import UserError

# What lies in `torch_model` and is copied into every release.
CODE_FILES = (
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
# What the released code assumes where its config.json is silent.
DEFAULT_QUERIES, DEFAULT_POSITION_GRID, RELEASED_HEAD_SIZE = 256, 16, 128
# Released max_position_embeddings is four times seq_length.
POSITIONS_PER_TRAIN_LENGTH = 4
RELEASED_NAME = "imported"  # of a model that only its config.json describes
# OpenAI's CLIP statistics of RGB values in [0, 1] (released visual.py).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


def released_config(
    model: ModelConfig, *, image_size: int, image_start_id: int, dtype: str, component: str = "all"
) -> dict[str, Any]:
    """The content of config.json.

    Args:
      model: sizes.
      image_size: pixels of the side that the checkpoint was last trained at.
      image_start_id: id of `<img>`; `</img>` and `<imgpad>` follow it.
      dtype: of the stored tensors.
      component: "all", "decoder" (no key `visual`) or "vision" (another class).

    Raises:
      UserError: if the released format cannot express the model.
    """
    vit, resampler, decoder = model.vit, model.resampler, model.decoder
    if not vit.layer_norm_eps == resampler.layer_norm_eps == decoder.rms_norm_eps:
        raise UserError("the released format has one layer_norm_epsilon, but vit, resampler and decoder differ in it")
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
        "initializer_range": 0.02,
        "intermediate_size": 2 * decoder.mlp_dim,  # the released key is the sum of both branches
        "kv_channels": decoder.head_dim,
        "layer_norm_epsilon": decoder.rms_norm_eps,
        "max_position_embeddings": POSITIONS_PER_TRAIN_LENGTH * decoder.train_length,
        "model_type": "qwen",
        "no_bias": True,  # c_attn has one all the same
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
    if component == "decoder":
        del content["visual"]
    if component == "vision":
        content["architectures"] = ["QWenVisionModel"]
        content["auto_map"] = {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModel": "modeling_qwen.QWenVisionModel",
        }
    return content


def _integer_if_whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _mlp_ratio(vit: VitConfig) -> float:
    """Four decimals, rounded up, so that int(width * ratio) is the hidden width again (4.9231 at full size)."""
    ratio = math.ceil(vit.mlp_dim / vit.width * 10000) / 10000
    if int(vit.width * ratio) != vit.mlp_dim:
        raise UserError(f"config.model.vit.mlp_dim {vit.mlp_dim} cannot be written as a ratio of four decimals")
    return ratio


def model_from_released(content: Mapping[str, Any], where: str) -> ModelConfig:
    """The sizes that a release's config.json states; `where` names the file in errors.

    The file does not name the model: `name` is RELEASED_NAME, ours is in training_config.json.

    Raises:
      UserError: if a key is missing, or states something this architecture does not have.
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
        raise UserError(f"{where} ties the word embeddings; Qwen-VL does not")
    return config_lib.validate(model, "config.model")


def untrained_config(
    model: ModelConfig, tokenizer: config_lib.TokenizerConfig, *, image_size: int, stage: str
) -> config_lib.Config:
    """The config that stands for weights no run of ours made: there is no data, schedule or mesh to tell of.

    Args:
      model: the architecture.
      tokenizer: its vocabulary.
      image_size: pixels of the side that it was last trained at.
      stage: of `config.STAGES`, the one whose kind of prompt the weights understand.
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
    """The content of generation_config.json: `raw` for pre-trained models, `chatml` after supervised tuning."""
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
      train_length: of the decoder; the released limit is four times as much.
      image_slots: ids between `<img>` and `</img>`; written where it is not the released 256.
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
    """The content of preprocessor_config.json: the processor of the release, and what it does, for other programs."""
    return {
        "auto_map": {"AutoImageProcessor": "image_processing_qwen.QWenImageProcessor"},
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "QWenImageProcessor",
        "image_std": list(IMAGE_STD),
        "resample": BICUBIC,
        "size": {"height": image_size, "width": image_size},
    }
