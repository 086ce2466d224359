"""Release: a trained checkpoint as a directory that PyTorch loads under the released names.

The directory holds safetensors shards with their index, config.json, generation_config.json, the vocabulary,
modeling_qwen.py, a model card, training_config.json (so that it can be imported again) and manifest.json. It appears
under its own name only when it is complete. Equal parameters and config give equal bytes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.conversion import mapping, released_config, tensor_files
from qwenvl_jax.conversion.model_card import model_card
from qwenvl_jax.data.tokenizer import load_tokenizer, packaged_qwen_vocabulary
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

TRAINING_CONFIG, MANIFEST = "training_config.json", "manifest.json"
VOCABULARY_FILES = {"qwen": "qwen.tiktoken", "sentencepiece": "tokenizer.model"}
SHARD_BYTES = 2 * 10**9


def release(
    params: Mapping[str, Any],
    config: Config,
    output: epath.PathLike,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> epath.Path:
    """Writes the release directory `output`.

    Args:
      params: the whole tree (see `qwen_vl.init_params`), arrays of any float dtype on host or device; one layer is
        brought to the host at a time.
      config: of the training run that made them.
      output: must not exist yet, or be an earlier release, which is replaced.
      dtype: of the stored tensors, "float32" or "bfloat16" (as released).
      shard_bytes: size of a shard at most.

    Raises:
      UserError: if `output` is something else already, the parameters are not those of `config.model`, or the
        released format cannot express it.
    """
    output = epath.Path(output)
    if dtype not in tensor_files.DTYPES:
        raise UserError(f"the dtype {dtype!r} is none of {', '.join(tensor_files.DTYPES)}")
    if output.exists() and not (output / MANIFEST).exists():
        raise UserError(f"{output} exists and is not a release; name another folder or remove it")
    entries = released_entries(params, config)
    building = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.tmp"
    building.mkdir(parents=True)
    try:
        tensors = _write_tensors(building, entries, dtype, shard_bytes)
        _write_texts(building, config, dtype)
        artifacts.write_json(building / MANIFEST, {"tensors": tensors, "files": _digests(building)})
        if output.exists():
            output.rmtree()
        building.rename(output)
    except BaseException:
        if building.exists():
            building.rmtree()
        raise
    return output


def released_entries(params: Mapping[str, Any], config: Config) -> list[tensor_files.Entry]:
    """Every released tensor of the model, in file order, to be read from `params` when its turn comes.

    Raises:
      UserError: naming the leaf that is missing, unknown or of another shape than `config.model` says.
    """
    ours = mapping.flatten(params)
    shapes = shapes_of(config)
    for path in shapes.keys() | ours.keys():
        if path not in ours:
            raise UserError(f"the checkpoint lacks the parameter {path}; it is not one of model {config.model.name!r}")
        if path not in shapes:
            raise UserError(f"the checkpoint has the parameter {path}, which model {config.model.name!r} has not")
        if tuple(ours[path].shape) != shapes[path]:
            raise UserError(f"{path} has shape {tuple(ours[path].shape)}, the model's config says {shapes[path]}")
    return [
        tensor_files.Entry(tensor.name, tensor.shape, lambda tensor=tensor: _released_array(tensor, ours))  # type: ignore[misc]
        for tensor in mapping.released_tensors(config.model, shapes)
    ]


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Full shape of every leaf of ours by path; allocates nothing."""
    flat = mapping.flatten(qwen_vl.abstract_params(config.model))
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _released_array(tensor: mapping.Tensor, ours: Mapping[str, Any]) -> np.ndarray:
    leaves = [ours[path] for path in tensor.rule.ours]
    if tensor.layer is not None:
        leaves = [leaf[tensor.layer] for leaf in leaves]
    return tensor.rule.release([np.asarray(leaf) for leaf in leaves])


def _write_tensors(
    folder: epath.Path, entries: list[tensor_files.Entry], dtype: str, shard_bytes: int
) -> dict[str, dict[str, Any]]:
    shards = tensor_files.plan_shards(entries, dtype, shard_bytes)
    width = tensor_files.DTYPES[dtype][1].itemsize
    weight_map: dict[str, str] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        digests = tensor_files.write_shard(folder / name, shard, dtype)
        for entry in shard:
            weight_map[entry.name] = name
            tensors[entry.name] = {"sha256": digests[entry.name], "shape": list(entry.shape), "dtype": dtype}
    index = {"metadata": {"total_size": sum(entry.size() for entry in entries) * width}, "weight_map": weight_map}
    artifacts.write_json(folder / tensor_files.INDEX_NAME, index)
    return tensors


def _write_texts(folder: epath.Path, config: Config, dtype: str) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    vocabulary = VOCABULARY_FILES[config.tokenizer.kind]
    source = epath.Path(config.tokenizer.path) if config.tokenizer.path else packaged_qwen_vocabulary()
    artifacts.write_bytes(folder / vocabulary, source.read_bytes())
    content = released_config.released_config(
        config.model, image_size=config.data.image_size, image_start_id=tokenizer.special.img, dtype=dtype
    )
    artifacts.write_json(folder / "config.json", content)
    artifacts.write_json(
        folder / "generation_config.json",
        released_config.generation_config(stage=config.train.stage, end_id=tokenizer.special.eot),
    )
    # The vocabulary lies beside it, wherever the directory goes.
    training = to_dict(config) | {"tokenizer": {"kind": config.tokenizer.kind, "path": vocabulary}}
    artifacts.write_json(folder / TRAINING_CONFIG, training)
    modeling = epath.Path(__file__).parent / "torch_model.py"
    artifacts.write_text(folder / released_config.MODELING_FILE, modeling.read_text())
    artifacts.write_text(folder / "README.md", model_card(config, dtype))


def _digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    about = {}
    for path in sorted(folder.iterdir()):
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
        about[path.name] = {"sha256": digest.hexdigest(), "bytes": size}
    return about
