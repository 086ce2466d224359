"""Import: a release directory back into our parameter tree, checked name by name before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax import config as config_lib
from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import mapping, released_config, tensor_files
from qwenvl_jax.conversion.to_torch import MANIFEST, TRAINING_CONFIG, VOCABULARY_FILES, shapes_of
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError, nearest

IMPORTED_CONFIG = "imported_config.json"


def load_release(folder: epath.PathLike) -> tuple[dict[str, Any], Config]:
    """Parameters and config of a release of ours.

    Args:
      folder: as `to_torch.release` writes it.

    Returns:
      The nested tree of numpy arrays in their stored dtype, and the training config, whose vocabulary path points
      into `folder`.

    Raises:
      UserError: naming the file or the tensor that is missing, unknown, misshapen or cut short.
    """
    folder = epath.Path(folder)
    config = read_config(folder)
    stored = read_index(folder)
    shapes = shapes_of(config)
    tensors = list(mapping.released_tensors(config.model, shapes))
    check_tensors(folder, stored, tensors)
    ours: dict[str, np.ndarray] = {}
    for tensor in tensors:
        source = stored[tensor.name]
        restored = tensor.rule.restore(tensor_files.read_tensor(source), mapping.shapes_of_ours(tensor.rule, shapes))
        for path, array in zip(tensor.rule.ours, restored, strict=True):
            if tensor.layer is None:
                ours[path] = np.ascontiguousarray(array)
                continue
            if path not in ours:
                ours[path] = np.empty(shapes[path], source.dtype)
            ours[path][tensor.layer] = array
    return mapping.unflatten(ours), config


def import_release(folder: epath.PathLike, workdir: epath.PathLike) -> None:
    """Makes a checkpoint of stage "import" in `workdir` out of a release, in the dtype it is stored in.

    The vocabulary and the config of the release stay beside it, so that it can be chatted with and released again.

    Raises:
      UserError: if the release is damaged or `workdir` already holds a run.
    """
    params, config = load_release(folder)
    workdir = epath.Path(workdir)
    vocabulary = workdir / VOCABULARY_FILES[config.tokenizer.kind]
    dtype = str(next(iter(mapping.flatten(params).values())).dtype)
    load_tokenizer(config.tokenizer)  # one that does not load is found before anything is written
    payload = epath.Path(config.tokenizer.path).read_bytes()
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))
    stored_as = dataclasses.replace(config.compute, frozen_dtype=dtype)
    restore.save_params(workdir, params, dataclasses.replace(config, compute=stored_as))
    artifacts.write_bytes(vocabulary, payload)
    artifacts.write_json(workdir / IMPORTED_CONFIG, config_lib.to_dict(config))


def original_config(workdir: epath.PathLike) -> Config | None:
    """The training config that an imported checkpoint was released with; None for a checkpoint trained here."""
    path = epath.Path(workdir) / IMPORTED_CONFIG
    return config_lib.from_config_dict(Config, artifacts.read_json(path), str(path)) if path.exists() else None


def read_config(folder: epath.Path) -> Config:
    """The training config of a release; its sizes must be those of config.json.

    Raises:
      UserError: if a file is missing or the two disagree.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist; name the folder of a release")
    content = artifacts.read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a Qwen-VL release")
    model = released_config.model_from_released(content, str(folder / "config.json"))
    training = artifacts.read_json(folder / TRAINING_CONFIG)
    config = config_lib.from_config_dict(Config, training, f"{folder / TRAINING_CONFIG}")
    if config.model != model:
        raise UserError(
            f"{folder}/config.json and {TRAINING_CONFIG} describe two different models; copy the release again"
        )
    vocabulary = folder / VOCABULARY_FILES[config.tokenizer.kind]
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))


def read_index(folder: epath.Path) -> dict[str, tensor_files.Stored]:
    """Where every tensor of the release lies.

    Raises:
      UserError: if a shard is missing or damaged, or the index disagrees with the shards.
    """
    path = folder / tensor_files.INDEX_NAME
    index = artifacts.read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{path} has no weight_map; copy the release again")
    stored: dict[str, tensor_files.Stored] = {}
    for shard in sorted(set(weight_map.values())):
        for name, where in tensor_files.read_header(folder / shard).items():
            if weight_map.get(name) != shard:
                raise UserError(
                    f"{name} lies in {shard}, but {path} says {weight_map.get(name)!r}; copy the release again"
                )
            stored[name] = where
    absent = [name for name in weight_map if name not in stored]
    if absent:
        raise UserError(f"{path} puts {absent[0]} into {weight_map[absent[0]]}, which does not hold it; copy it again")
    return stored


def check_tensors(folder: epath.Path, stored: dict[str, tensor_files.Stored], tensors: list[mapping.Tensor]) -> None:
    """Compares what is stored with what the model needs.

    Raises:
      UserError: naming the first tensor that is missing, unknown or misshapen.
    """
    needed = {tensor.name: tensor.shape for tensor in tensors}
    for name in needed:
        if name not in stored:
            raise UserError(f"{folder} lacks the tensor {name}, which its config.json needs{nearest(name, stored)}")
    for name, where in stored.items():
        if name not in needed:
            raise UserError(
                f"{folder} has the tensor {name}, which its config.json does not know{nearest(name, needed)}"
            )
        if where.shape != needed[name]:
            raise UserError(f"{name} in {folder} has shape {where.shape}, its config.json needs {needed[name]}")


def verify_manifest(folder: epath.PathLike) -> int:
    """Compares every tensor with the sha256 of manifest.json; returns how many there are.

    Raises:
      UserError: naming the first tensor whose bytes, shape or dtype are not the manifest's.
    """
    folder = epath.Path(folder)
    manifest = artifacts.read_json(folder / MANIFEST)
    stored = read_index(folder)
    try:
        for name, about in manifest["tensors"].items():
            where = stored.get(name)
            if where is None:
                raise UserError(f"{folder} lacks the tensor {name}, which its manifest lists; copy the release again")
            digest = hashlib.sha256(tensor_files.read_tensor(where).view(np.uint8).reshape(-1).data).hexdigest()
            if (digest, list(where.shape)) != (about["sha256"], about["shape"]):
                raise UserError(f"the bytes of {name} in {where.file} are not those of the manifest; copy it again")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise UserError(f"{folder / MANIFEST} is not the manifest of a release; copy the release again") from None
    return len(stored)
