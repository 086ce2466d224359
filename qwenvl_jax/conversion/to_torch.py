"""Release: writes a trained checkpoint as a directory that PyTorch loads, with the released tensor names.

The directory contains the weights in shards with their index, the JSON files of `released_config`, the vocabulary, the
code of `torch_model`, a model card, a licence notice, training_config.json (so that it can be imported again) and
manifest.json. It gets its final name when it is complete. An object store has no rename; there manifest.json is written
last. Equal parameters and config give equal bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.deferred import host_array
from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.conversion import bin_files, mapping, released_config, streaming, tensor_files
from qwenvl_jax.conversion.manifest import MANIFEST, TRAINING_CONFIG, UNFINISHED
from qwenvl_jax.conversion.mapping import Tensor
from qwenvl_jax.conversion.model_card import model_card, notice
from qwenvl_jax.data.tokenizer import load_tokenizer, packaged_qwen_vocabulary
from qwenvl_jax.params import flatten_paths
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

VOCABULARY_FILES = {"qwen": "qwen.tiktoken", "sentencepiece": "tokenizer.model"}
FORMATS = ("safetensors", "bin")
SHARD_BYTES = 2 * 10**9
_INDEX_NAMES = {"safetensors": tensor_files.INDEX_NAME, "bin": bin_files.INDEX_NAME}
_SHARD_NAMES = {
    "safetensors": "model-{number:05d}-of-{total:05d}.safetensors",
    "bin": "pytorch_model-{number:05d}-of-{total:05d}.bin",
}


def release(
    params: dict[str, Any],
    config: Config,
    output: epath.PathLike,
    *,
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
    file_format: str = "safetensors",
    scope: str = "all",
) -> epath.Path:
    """Writes the release directory `output`.

    Args:
      params: the tree of `qwen_vl.init_params`, or only the towers of `scope`. The leaves are arrays of any float dtype
        on host or device, or `Deferred`; they are copied to the host one at a time.
      config: of the training run that made them.
      output: must not exist yet, or be an earlier release, which is replaced.
      dtype: of the stored tensors, "float32" or "bfloat16". Empty means bfloat16, the released dtype, if all `params`
        have it, and otherwise float32.
      shard_bytes: the largest size of a shard.
      file_format: "safetensors", or "bin" for PyTorch's format.
      scope: "all", "decoder" (only the language model) or "vision" (only ViT, resampler and head).

    Raises:
      UserError: if `output` exists and is not a release, the parameters are not those of `config.model`, or the
        released format cannot express the model.
    """
    output = storage.path(output)
    if storage.exists(output):
        names = set(storage.names(output)) if storage.is_folder(output) else set()
        if not names & {MANIFEST, UNFINISHED}:
            raise UserError(f"{output} exists and is not a release; name another folder or remove it")
    ours = flatten_paths(params)
    tensors = list(mapping.released_tensors(config.model, mapping.RELEASE_SCOPES[scope].rules))
    check_params(ours, config, tensors, whole=scope == "all")
    dtype = dtype or _common_dtype(ours, tensors)
    if dtype not in tensor_files.DTYPES:
        raise UserError(f"the dtype {dtype!r} is unknown; use one of {', '.join(tensor_files.DTYPES)}")

    def write(folder: epath.Path) -> None:
        _write_texts(folder, config, dtype, scope)
        digests = _digests(folder)
        manifest = _write_tensors(folder, ours, tensors, dtype, shard_bytes, file_format)
        artifacts.write_json(folder / MANIFEST, {"component": scope, "tensors": manifest, "files": digests})

    if storage.is_remote(output):
        _write_in_place(output, write)
    else:
        with artifacts.built_beside(output) as building:
            write(building)
    return output


def _write_in_place(output: epath.Path, write: Callable[[epath.Path], None]) -> None:
    """Writes a release on an object store. The manifest of an older release is removed before anything else changes.

    The file UNFINISHED exists until the end, so that the same command can start over after it was killed.
    """
    artifacts.write_json(output / UNFINISHED, {"what": "a release that is being written; it has no manifest.json yet"})
    storage.remove(output / MANIFEST)
    for name in storage.names(output):
        if name != UNFINISHED:
            storage.remove(output / name)
    write(output)
    storage.remove(output / UNFINISHED)


def check_params(ours: Mapping[str, Any], config: Config, tensors: Sequence[Tensor], *, whole: bool) -> None:
    """Raises UserError naming the first leaf that is missing, unknown or has another shape than in `config.model`."""
    shapes = mapping.shapes_of(config.model)
    name = config.model.name
    for path in dict.fromkeys(path for tensor in tensors for path in tensor.rule.ours):
        if path not in ours:
            raise UserError(
                f"the checkpoint lacks the parameter {path}; name a checkpoint that contains the model {name!r}"
            )
        if tuple(ours[path].shape) != shapes[path]:
            raise UserError(f"{path} has shape {tuple(ours[path].shape)}, but model {name!r} needs {shapes[path]}")
    for path in ours if whole else ():
        if path not in shapes:
            raise UserError(f"the checkpoint has the parameter {path}, which model {name!r} does not have")


def _common_dtype(ours: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    dtypes = {str(ours[path].dtype) for tensor in tensors for path in tensor.rule.ours}
    return "bfloat16" if dtypes == {"bfloat16"} else "float32"


def _released_arrays(
    ours: Mapping[str, Any], tensors: Sequence[Tensor], dtype: str
) -> Iterator[tuple[np.ndarray, str]]:
    """Yields all tensors in order, C-contiguous in `dtype`, with their sha256. Loads one rule's leaves at a time."""
    stored = tensor_files.DTYPES[dtype][1]
    for rule, group in itertools.groupby(tensors, key=lambda tensor: tensor.rule):
        leaves = [np.asarray(host_array(ours[path])) for path in rule.ours]

        def finish(tensor: Tensor, leaves: list[np.ndarray] = leaves) -> tuple[np.ndarray, str]:
            layer = leaves if tensor.layer is None else [leaf[tensor.layer] for leaf in leaves]
            released = tensor.rule.release([streaming.bits(leaf) for leaf in layer])
            array = streaming.contiguous(released).view(leaves[0].dtype).astype(stored, copy=False)
            return array, hashlib.sha256(tensor_files.payload(array)).hexdigest()

        yield from streaming.in_order(finish, group)
        del leaves, finish


def _write_tensors(
    folder: epath.Path,
    ours: Mapping[str, Any],
    tensors: Sequence[Tensor],
    dtype: str,
    shard_bytes: int,
    file_format: str,
) -> dict[str, dict[str, Any]]:
    """Writes all shards and their index; returns the manifest entries of the tensors."""
    entries = [tensor_files.Entry(tensor.name, tensor.shape) for tensor in tensors]
    shards = tensor_files.plan_shards(entries, dtype, shard_bytes)
    stream = _released_arrays(ours, tensors, dtype)
    weight_map: dict[str, str] = {}
    about: dict[str, dict[str, Any]] = {}

    def arrays(shard: Sequence[tensor_files.Entry]) -> Iterator[np.ndarray]:
        for entry in shard:
            array, digest = next(stream)
            about[entry.name] = {"sha256": digest, "shape": list(entry.shape), "dtype": dtype}
            yield array

    pattern = _SHARD_NAMES[file_format]
    for number, shard in enumerate(shards, start=1):
        name = pattern.format(number=number, total=len(shards))
        if file_format == "bin":
            named = dict(zip((entry.name for entry in shard), arrays(shard), strict=True))
            bin_files.write_shard(folder / name, named)
        else:
            tensor_files.write_shard(folder / name, shard, dtype, arrays(shard))
        weight_map |= {entry.name: name for entry in shard}
    size = sum(entry.size for entry in entries) * tensor_files.DTYPES[dtype][1].itemsize
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    artifacts.write_json(folder / _INDEX_NAMES[file_format], index)
    return about


def _write_texts(folder: epath.Path, config: Config, dtype: str, scope: str) -> None:
    """Writes every file but the shards, their index and the manifest."""
    tokenizer = load_tokenizer(config.tokenizer)
    vocabulary = VOCABULARY_FILES[config.tokenizer.kind]
    source = storage.path(config.tokenizer.path) if config.tokenizer.path else packaged_qwen_vocabulary()
    storage.write_bytes(folder / vocabulary, storage.read_bytes(source))
    # A relative path, so that the directory can be moved.
    training = to_dict(config) | {"tokenizer": {"kind": config.tokenizer.kind, "path": vocabulary}}
    image_size = config.data.image_size
    texts = {
        "config.json": released_config.released_config(
            config.model,
            image_size=image_size,
            image_start_id=tokenizer.special.img,
            dtype=dtype,
            scope=scope,
        ),
        TRAINING_CONFIG: training,
    }
    if scope != "decoder":
        texts["preprocessor_config.json"] = released_config.preprocessor_config(image_size)
    if scope != "vision":
        texts["generation_config.json"] = released_config.generation_config(
            stage=config.train.stage, end_id=tokenizer.special.eot
        )
        texts["tokenizer_config.json"] = released_config.tokenizer_config(
            train_length=config.model.decoder.train_length, image_slots=config.model.resampler.queries
        )
    for name, content in texts.items():
        artifacts.write_json(folder / name, content)
    code = epath.Path(__file__).parent / "torch_model"
    for name in released_config.CODE_FILES:
        artifacts.write_text(folder / name, (code / name).read_text())
    artifacts.write_text(folder / "README.md", model_card(config, dtype, scope))
    artifacts.write_text(folder / "NOTICE", notice(config))


def _digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """The sha256 and size of every file written so far; shards come later, and their tensors have separate digests."""
    contents = {name: storage.read_bytes(folder / name) for name in storage.names(folder) if name != UNFINISHED}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
