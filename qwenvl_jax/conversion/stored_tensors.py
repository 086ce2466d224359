"""Finds the tensors of a checkpoint and checks their names and shapes before any is read; makes them our leaves.

stored = open_checkpoint("Qwen-VL")                       # a folder with an index, or one file
check_tensors("Qwen-VL", stored, released_tensors(model))
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.conversion import bin_files, mapping, streaming, tensor_files
from qwenvl_jax.conversion.mapping import Rule, Tensor
from qwenvl_jax.conversion.tensor_files import Stored
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest

INDEX_NAMES = (tensor_files.INDEX_NAME, bin_files.INDEX_NAME)
# The files of OpenCLIP. Its folders on the hub also contain the same weights under the tensor names of transformers.
OPENCLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# The names that transformers gives to checkpoints of one file.
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin)")


def open_checkpoint(path: epath.PathLike) -> dict[str, Stored]:
    """Locates every tensor of a checkpoint by name; reads only headers.

    Args:
      path: a folder with an index and its shards, a folder with one file of a usual name, or that file.

    Raises:
      UserError: if there is no checkpoint, a shard is missing or damaged, the index disagrees with the shards, or the
        kind of checkpoint is not supported.
    """
    path = storage.path(path)
    if storage.is_folder(path):
        path = _main_file(path)
    elif not storage.exists(path):
        raise UserError(f"{path} does not exist; name the folder or the file of a checkpoint")
    return _read_index(path.parent, path) if path.name in INDEX_NAMES else _read_file(path)


def _main_file(folder: epath.Path) -> epath.Path:
    """The index of a folder, or its single file of tensors."""
    present = storage.sizes(folder)
    refuse_other_kinds(folder)
    for name in (*OPENCLIP_NAMES, *INDEX_NAMES, *SINGLE_NAMES):
        if name in present:
            return folder / name
    shards = [name for name in present if _SHARD.fullmatch(name)]
    if shards:
        raise UserError(f"{folder} contains {shards[0]} but no index; copy {' or '.join(INDEX_NAMES)} as well")
    known = (*INDEX_NAMES, *SINGLE_NAMES, *OPENCLIP_NAMES)
    raise UserError(
        f"{folder} contains no checkpoint, i.e. none of {', '.join(known)}; name the folder or the file of a checkpoint"
    )


def refuse_other_kinds(folder: epath.Path) -> None:
    """Refuses folders that are not a whole checkpoint in a supported format: adapters, quantised weights, GGUF.

    Raises:
      UserError: says what to do instead.
    """
    present = storage.names(folder)
    if "adapter_config.json" in present:
        content = artifacts.read_json(folder / "adapter_config.json")
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        raise UserError(
            f"{folder} is an adapter (LoRA) of {base or 'another model'}, not a whole model; name that model and merge "
            "the adapter into it with --adapters, or with merge_and_unload and save_pretrained of peft"
        )
    content = artifacts.read_json(folder / "config.json") if "config.json" in present else {}
    quantised = content.get("quantization_config") if isinstance(content, dict) else None
    if quantised or "quantize_config.json" in present:
        kind = quantised.get("quant_method", "int4") if isinstance(quantised, dict) else "int4"
        raise UserError(
            f"{folder} is quantised ({kind}), which cannot be undone; name the model that it was made from, in "
            "bfloat16, float16 or float32 (Qwen-VL-Chat for Qwen-VL-Chat-Int4)"
        )
    if any(name.endswith(".gguf") for name in present):
        raise UserError(f"{folder} contains GGUF files of llama.cpp; name the model that they were made from")


def _read_file(path: epath.Path) -> dict[str, Stored]:
    try:
        return (bin_files if path.suffix in bin_files.SUFFIXES else tensor_files).read_header(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, although the checkpoint names it; copy it again") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file of tensors, or the folder of a checkpoint") from None


def _weight_map(path: epath.Path) -> dict[str, str]:
    index = artifacts.read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{path} has no weight_map; copy the checkpoint again")
    for name in weight_map.values():
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise UserError(
                f"{path} names the shard {name!r}, which is not a file in the same folder; copy the checkpoint again"
            )
    return weight_map


def shards_of(index: epath.Path) -> list[str]:
    """The names of the shards that an index lists, sorted."""
    return sorted(set(_weight_map(index).values()))


def _read_index(folder: epath.Path, path: epath.Path) -> dict[str, Stored]:
    weight_map = _weight_map(path)
    shards = sorted(set(weight_map.values()))
    present = storage.sizes(folder)
    missing = [shard for shard in shards if shard not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(shards)} shards that {path} names are missing; copy {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    stored: dict[str, Stored] = {}
    for shard in shards:
        for name, tensor in _read_file(folder / shard).items():
            if weight_map.get(name) != shard:
                raise UserError(
                    f"{name} is in {shard}, but {path} says {weight_map.get(name)!r}; copy the checkpoint again"
                )
            stored[name] = tensor
    absent = [name for name in weight_map if name not in stored]
    if absent:
        raise UserError(
            f"{path} says that {absent[0]} is in {weight_map[absent[0]]}, but it is not; copy the checkpoint again"
        )
    return stored


def identity(path: epath.PathLike, manifest: str = "") -> dict[str, Any]:
    """The entry of lineage.json for an imported checkpoint: its path, and sha256 and size of files that identify it.

    Args:
      path: as in `open_checkpoint`.
      manifest: the name of a file with the digests of all tensors, which is then the only one to be hashed. If it is
        empty, all files of tensors are hashed.
    """
    path = storage.absolute(path)
    if manifest:
        files = [path / manifest]
    else:
        main = _main_file(path) if storage.is_folder(path) else path
        shards = shards_of(main) if main.name in INDEX_NAMES else []
        files = [main, *(main.parent / shard for shard in shards)]
    digests = streaming.in_order(artifacts.sha256_of, files)
    about = {
        file.name: {"sha256": digest, "bytes": storage.size(file)}
        for file, digest in zip(files, list(digests), strict=True)
    }
    return {"path": str(path), "files": about}


def check_tensors(
    where: epath.PathLike,
    stored: Mapping[str, Stored],
    tensors: Iterable[Tensor],
    left_out: re.Pattern[str] | None = None,
) -> None:
    """Compares the stored tensors with those that the model needs.

    Args:
      where: the checkpoint, for the error message.
      stored: the result of `open_checkpoint`.
      tensors: the tensors that must be stored.
      left_out: a pattern of other names that are allowed.

    Raises:
      UserError: if a tensor is missing, unknown or misshapen; the message names the first one.
    """
    needed: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        name = tensor.name
        shape = tensor.shape
        needed[name] = shape
        if name not in stored:
            raise UserError(f"{where} lacks the tensor {name}, which the model's config needs{nearest(name, stored)}")
        if stored[name].shape != shape:
            raise UserError(f"{name} in {where} has shape {stored[name].shape}, but the model's config needs {shape}")
    for name in stored:
        if name not in needed and not (left_out and left_out.fullmatch(name)):
            raise UserError(
                f"{where} has the tensor {name}, which the model's config does not have{nearest(name, needed)}"
            )


def deferred_leaves(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], rules: Sequence[Rule]
) -> dict[str, Deferred]:
    """Our leaves by path; each reads its stored tensors when it is loaded.

    Args:
      shapes: of all leaves of the model by path, with the layer axis.
      stored: the result of `open_checkpoint`, checked with `check_tensors`.
      rules: of the leaves that are wanted.
    """
    leaves = {}
    for rule in rules:
        layers = shapes[rule.ours[0]][0] if rule.stacked else 1
        tensors = [stored[rule.released.replace(mapping.LAYER, str(layer))] for layer in range(layers)]
        dtypes = {tensor.dtype for tensor in tensors}
        # float32 represents the values of all dtypes that are read.
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        for part, path in enumerate(rule.ours):
            load = functools.partial(_load_leaf, rule, part, tensors, mapping.shapes_of_ours(rule, shapes), dtype)
            leaves[path] = Deferred(shapes[path], dtype, load)
    return leaves


def _load_leaf(
    rule: Rule, part: int, tensors: Sequence[Stored], shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> np.ndarray:
    """Reads the `part`-th leaf of a rule from the tensors of its layers, in our layout."""
    leaf = np.empty((len(tensors), *shapes[part]), dtype)

    def load_layer(layer: int) -> None:
        tensor = tensor_files.read_tensor(tensors[layer]).astype(dtype, copy=False)
        streaming.copy_into(streaming.bits(leaf[layer]), rule.restore(streaming.bits(tensor), shapes)[part])

    for _ in streaming.in_order(load_layer, range(len(tensors))):
        pass
    return leaf if rule.stacked else leaf[0]
