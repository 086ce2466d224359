"""Checkpoints of CLIP with random weights, under the names and shapes that OpenCLIP gives them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.tensor_files import Entry, write_shard
from qwenvl_jax.models import clip
from qwenvl_jax.models.clip import CLIP_MODELS, ClipConfig
from qwenvl_jax.params import flatten_paths

GOLDEN = Path(__file__).parents[1] / "golden" / "clip"
VOCABULARY = GOLDEN / "vocabulary.txt"


def _random_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_weights", GOLDEN / "random_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random_weights = _random_weights()


@functools.cache
def openclip_tensors() -> dict[str, dict[str, Any]]:
    """Model -> name of the tensor, `{layer}` for the number of the block -> [shape, number of such tensors]."""
    return json.loads((GOLDEN / "tensors.json").read_text())


def with_layers(config: ClipConfig, layers: int) -> ClipConfig:
    """The config with so many blocks per tower."""
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, layers=layers),
        text=dataclasses.replace(config.text, layers=layers),
    )


def tiny_config(vocab_size: int) -> ClipConfig:
    """Two small blocks per tower, pictures of 24 pixels."""
    base = CLIP_MODELS["ViT-B-32"]
    vision = dataclasses.replace(base.vision, width=16, heads=2, mlp_dim=24, patch_size=8, layers=2, position_grid=3)
    text = dataclasses.replace(base.text, width=12, heads=3, mlp_dim=20, layers=2, vocab_size=vocab_size)
    return ClipConfig(vision, text, embed_dim=10)


def tiny_state(config: ClipConfig) -> dict[str, np.ndarray]:
    """The tensors of a config under OpenCLIP's names, with random weights."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(clip.abstract_params(config)).items()}
    tensors = mapping.tensors_of(shapes, mapping.CLIP_RULES)
    state = {tensor.name: random_weights.random_tensor(tensor.name, tensor.shape) for tensor in tensors}
    return state | {"logit_scale": np.array([4.6], np.float32)}


def write_tiny(folder: Path, config: ClipConfig) -> Path:
    """Writes a checkpoint of `tiny_state`."""
    path = folder / "tiny.safetensors"
    save_file(tiny_state(config), path)
    return path


def picture(number: int) -> bytes:
    """A small PNG of its own size."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*rng.integers(5, 60, 2), 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tensors_of(name: str, layers: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of an OpenCLIP model with so many blocks per tower; None: all."""
    for pattern, (shape, count) in openclip_tensors()[name].items():
        if "{layer}" not in pattern:
            yield pattern, tuple(shape)
            continue
        for layer in range(count if layers is None else layers):
            yield pattern.replace("{layer}", str(layer)), tuple(shape)


def write_model(folder: Path, name: str, layers: int | None) -> tuple[Path, ClipConfig]:
    """Writes a model with the weights of the golden files; its file and its config."""
    entries = [Entry(tensor, shape) for tensor, shape in tensors_of(name, layers)]
    arrays = (np.asarray(random_weights.random_tensor(entry.name, entry.shape), np.float32) for entry in entries)
    path = folder / "open_clip_model.safetensors"
    write_shard(epath.Path(path), entries, "float32", arrays)
    config = CLIP_MODELS[name]
    return path, config if layers is None else with_layers(config, layers)
