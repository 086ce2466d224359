"""Checkpoints of CLIP with random weights, under the names and shapes that OpenCLIP gives them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.conversion.tensor_files import Entry, write_shard
from qwenvl_jax.models.clip import CLIP_MODELS, ClipConfig

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
