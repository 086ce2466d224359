"""A tiny model in PyTorch, its tokenizer and its release folder, made without JAX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from qwenvl_jax.conversion import released_config, torch_model
from qwenvl_jax.conversion.torch_model.configuration_qwen import QWenConfig
from qwenvl_jax.conversion.torch_model.modeling_qwen import QWenLMHeadModel

CODE = Path(torch_model.__file__).parent
QUERIES, IMAGE_SIZE, TRAIN_LENGTH, VOCABULARY = 16, 28, 32, 448
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    kv_channels=8, seq_length=TRAIN_LENGTH, max_position_embeddings=4 * TRAIN_LENGTH, torch_dtype="float32",
)  # fmt: skip
# A 4 x 4 table for 2 x 2 patches and queries on 4 x 4: both tables are interpolated.
VISUAL = dict(
    heads=3, image_size=IMAGE_SIZE, layers=2, mlp_ratio=2.0, output_dim=32, patch_size=14, width=24,
    n_queries=QUERIES, position_grid=4, resampler_heads=2,
)  # fmt: skip
CHAT = {"chat_format": "chatml", "max_new_tokens": 8, "max_window_size": 6144, "do_sample": False}


def make_config(image_start_id: int, **changes: Any) -> QWenConfig:
    return QWenConfig(**{**SIZES, "visual": {**VISUAL, "image_start_id": image_start_id}, **changes})


def make_model(config: QWenConfig, kind: Callable[[QWenConfig], Any] = QWenLMHeadModel) -> Any:
    """In evaluation mode, with noise on every parameter."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_ids(*shape: int) -> torch.Tensor:
    """Ids of ordinary text; the same for the same shape."""
    return torch.randint(0, 400, shape, generator=torch.Generator().manual_seed(sum(shape)))


def pixels(count: int, size: int = IMAGE_SIZE) -> torch.Tensor:
    """[count, 3, size, size] of noise; the same for the same count."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def write_tokenizer(folder: Path, vocabulary: Path, name: str, slots: int) -> Any:
    """A folder with code, vocabulary and tokenizer_config.json; returns what AutoTokenizer makes of it."""
    folder.mkdir()
    shutil.copy(vocabulary, folder / name)
    for code in released_config.CODE_FILES:
        shutil.copy(CODE / code, folder / code)
    content = released_config.tokenizer_config(train_length=2048, image_slots=slots)
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)


def write_model(folder: Path, model: Any) -> None:
    """Adds weights and configs to a folder, under the names of a release."""
    model.save_pretrained(str(folder))
    content = json.loads((folder / "config.json").read_text())
    name = type(model).__name__
    auto = "AutoModel" if "Vision" in name else "AutoModelForCausalLM"
    content["auto_map"] = {"AutoConfig": "configuration_qwen.QWenConfig", auto: f"modeling_qwen.{name}"}
    (folder / "config.json").write_text(json.dumps(content))
    if auto == "AutoModelForCausalLM":
        (folder / "generation_config.json").write_text(json.dumps(CHAT))
