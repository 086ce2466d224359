"""Release: a trained checkpoint as a directory that PyTorch loads under the released names.

The directory holds the weights in shards with their index, the JSON files of `released_config`, the vocabulary, the
code of `torch_model`, a model card, a licence notice, training_config.json (so that it can be imported again) and
manifest.json. It appears under its own name only when it is complete; on an object store, where nothing can be renamed,
manifest.json comes last. Equal parameters and config give equal bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
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
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

VOCABULARY_FILES = {"qwen": "qwen.tiktoken", "sentencepiece": "tokenizer.model"}
FORMATS = ("safetensors", "bin")
SHARD_BYTES = 2 * 10**9


def release(
    params: Mapping[str, Any],
    config: Config,
    output: epath.PathLike,
    *,
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
    file_format: str = "safetensors",
    component: str = "all",
) -> epath.Path:
    """Writes the release directory `output`.

    Args:
      params: the tree of `qwen_vl.init_params`, or the towers of `component` alone: arrays of any float dtype on host
        or device, or `Deferred`; one leaf at a time is brought to the host.
      config: of the training run that made them.
      output: must not exist yet, or be an earlier release, which is replaced.
      dtype: of the stored tensors, "float32" or "bfloat16"; empty means bfloat16 (as released) if all `params` are.
      shard_bytes: size of a shard at most.
      file_format: "safetensors", or "bin" for PyTorch's own.
      component: "all", "decoder" (a language model alone) or "vision" (ViT, resampler and head alone).

    Raises:
      UserError: if `output` is something else already, the parameters are not those of `config.model`, or the
        released format cannot express it.
    """
    output = storage.path(output)
    if storage.exists(output):
        found = set(storage.names(output)) if storage.is_folder(output) else set()
        if not found & {MANIFEST, UNFINISHED}:
            raise UserError(f"{output} exists and is not a release; name another folder or remove it")
    ours = mapping.flatten(params)
    tensors = list(mapping.released_tensors(config.model, mapping.COMPONENTS[component]))
    check_params(ours, config, tensors, whole=component == "all")
    dtype = dtype or _common_dtype(ours, tensors)
    if dtype not in tensor_files.DTYPES:
        raise UserError(f"the dtype {dtype!r} is none of {', '.join(tensor_files.DTYPES)}")

    def write(folder: epath.Path) -> None:
        _write_texts(folder, config, dtype, component)
        digests = _digests(folder)
        manifest = _write_tensors(folder, ours, tensors, dtype, shard_bytes, file_format)
        artifacts.write_json(folder / MANIFEST, {"component": component, "tensors": manifest, "files": digests})

    if storage.is_remote(output):
        _write_in_place(output, write)
    else:
        building = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.tmp"
        with artifacts.undone_on_failure(building):
            storage.make_folder(building)
            write(building)
            artifacts.replace_folder(building, output)
    return output


def _write_in_place(output: epath.Path, write: Callable[[epath.Path], None]) -> None:
    """Writes a release on an object store, where an older one loses its manifest before anything else changes.

    The file UNFINISHED is there until the end, so that the same command can begin again where one was killed.
    """
    artifacts.write_json(output / UNFINISHED, {"what": "a release that is being written; it has no manifest.json yet"})
    storage.remove(output / MANIFEST)
    for name in storage.names(output):
        if name != UNFINISHED:
            storage.remove(output / name)
    write(output)
    storage.remove(output / UNFINISHED)


def check_params(ours: Mapping[str, Any], config: Config, tensors: Sequence[Tensor], *, whole: bool) -> None:
    """Raises UserError naming the leaf that is missing, unknown or of another shape than `config.model` says."""
    shapes, name = mapping.shapes_of(config.model), config.model.name
    for path in dict.fromkeys(path for tensor in tensors for path in tensor.rule.ours):
        if path not in ours:
            raise UserError(f"the checkpoint lacks the parameter {path}; it is not one of the whole model {name!r}")
        if tuple(ours[path].shape) != shapes[path]:
            raise UserError(f"{path} has shape {tuple(ours[path].shape)}, model {name!r} needs {shapes[path]}")
    for path in ours if whole else ():
        if path not in shapes:
            raise UserError(f"the checkpoint has the parameter {path}, which model {name!r} has not")


def _common_dtype(ours: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    dtypes = {str(ours[path].dtype) for tensor in tensors for path in tensor.rule.ours}
    return "bfloat16" if dtypes == {"bfloat16"} else "float32"


def _released_arrays(
    ours: Mapping[str, Any], tensors: Sequence[Tensor], dtype: str
) -> Iterator[tuple[np.ndarray, str]]:
    """Every tensor in order, C-contiguous in `dtype`, with its sha256; the leaves of one rule are held at a time."""
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
    folder: epath.Path, ours: Mapping[str, Any], tensors: Sequence[Tensor], dtype: str, shard_bytes: int, form: str
) -> dict[str, dict[str, Any]]:
    """Writes all shards and their index; returns what the manifest says of every tensor."""
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

    stem, suffix, index_name = (
        ("pytorch_model", "bin", bin_files.INDEX_NAME)
        if form == "bin"
        else ("model", "safetensors", tensor_files.INDEX_NAME)
    )
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        if form == "bin":
            named = dict(zip((entry.name for entry in shard), arrays(shard), strict=True))
            bin_files.write_shard(folder / name, named)
        else:
            tensor_files.write_shard(folder / name, shard, dtype, arrays(shard))
        weight_map |= {entry.name: name for entry in shard}
    size = sum(entry.size for entry in entries) * tensor_files.DTYPES[dtype][1].itemsize
    artifacts.write_json(folder / index_name, {"metadata": {"total_size": size}, "weight_map": weight_map})
    return about


def _write_texts(folder: epath.Path, config: Config, dtype: str, component: str) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    vocabulary = VOCABULARY_FILES[config.tokenizer.kind]
    source = storage.path(config.tokenizer.path) if config.tokenizer.path else packaged_qwen_vocabulary()
    storage.write_bytes(folder / vocabulary, storage.read_bytes(source))
    # The vocabulary lies beside it, wherever the directory goes.
    training = to_dict(config) | {"tokenizer": {"kind": config.tokenizer.kind, "path": vocabulary}}
    image_size = config.data.image_size
    texts = {
        "config.json": released_config.released_config(
            config.model,
            image_size=image_size,
            image_start_id=tokenizer.special.img,
            dtype=dtype,
            component=component,
        ),
        TRAINING_CONFIG: training,
    }
    if component != "decoder":
        texts["preprocessor_config.json"] = released_config.preprocessor_config(image_size)
    if component != "vision":
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
    artifacts.write_text(folder / "README.md", model_card(config, dtype, component))
    artifacts.write_text(folder / "NOTICE", notice(config))


def _digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file that is not a shard: the tensors have digests of their own."""
    contents = {name: storage.read_bytes(folder / name) for name in storage.names(folder) if name != UNFINISHED}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
