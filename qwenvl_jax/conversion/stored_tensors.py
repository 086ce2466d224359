"""Finding the tensors of a checkpoint, ours or another's, and checking their names and shapes before any is read.

stored = open_checkpoint("Qwen-VL")                       # a folder with an index, or one file
check_tensors("Qwen-VL", stored, released_tensors(model))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from qwenvl_jax.conversion import bin_files, streaming, tensor_files
from qwenvl_jax.conversion.mapping import Tensor
from qwenvl_jax.conversion.tensor_files import Stored
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest

INDEX_NAMES = (tensor_files.INDEX_NAME, bin_files.INDEX_NAME)
# OpenCLIP's own file. Its folders on the hub hold the same weights for transformers besides, under other names.
OPENCLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# Checkpoints of one file, as transformers names them.
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin)")


def open_checkpoint(path: epath.PathLike) -> dict[str, Stored]:
    """Where every tensor of a checkpoint lies; nothing but headers is read.

    Args:
      path: a folder with an index and its shards or with one file of a usual name, or that file.

    Raises:
      UserError: if there is none, a shard is missing or damaged, the index disagrees with the shards, or the folder
        is of a kind that is not read.
    """
    path = storage.path(path)
    if storage.is_folder(path):
        path = _main_file(path)
    elif not storage.exists(path):
        raise UserError(f"{path} does not exist; name the folder or the file of a checkpoint")
    return _read_index(path.parent, path) if path.name in INDEX_NAMES else _read_file(path)


def _main_file(folder: epath.Path) -> epath.Path:
    """The index of a folder, or its one file."""
    present = storage.sizes(folder)
    refuse_other_kinds(folder)
    for name in (*OPENCLIP_NAMES, *INDEX_NAMES, *SINGLE_NAMES):
        if name in present:
            return folder / name
    shards = [name for name in present if _SHARD.fullmatch(name)]
    if shards:
        raise UserError(f"{folder} holds {shards[0]} and others, but no index; copy {' or '.join(INDEX_NAMES)} as well")
    known = (*INDEX_NAMES, *SINGLE_NAMES, *OPENCLIP_NAMES)
    raise UserError(f"{folder} holds no checkpoint: none of {', '.join(known)} is there; name its folder or its file")


def refuse_other_kinds(folder: epath.Path) -> None:
    """Refuses folders that look like a checkpoint and are something else: adapters, quantised weights, other formats.

    Raises:
      UserError: with the step that helps.
    """
    present = storage.names(folder)
    if "adapter_config.json" in present:
        content = artifacts.read_json(folder / "adapter_config.json")
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        raise UserError(
            f"{folder} is an adapter (LoRA) of {base or 'another model'}, not a whole model; merge it into that one "
            "with peft's merge_and_unload and save_pretrained, and name the folder where the result lies"
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
        raise UserError(f"{folder} holds GGUF files of llama.cpp; name the model that they were made from")


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
            raise UserError(f"{path} names the shard {name!r}, which is no file beside it; copy the checkpoint again")
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
            f"{len(missing)} of the {len(shards)} shards that {path} names are not there; copy {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    stored: dict[str, Stored] = {}
    for shard in shards:
        for name, where in _read_file(folder / shard).items():
            if weight_map.get(name) != shard:
                raise UserError(
                    f"{name} lies in {shard}, but {path} says {weight_map.get(name)!r}; copy the checkpoint again"
                )
            stored[name] = where
    absent = [name for name in weight_map if name not in stored]
    if absent:
        raise UserError(f"{path} puts {absent[0]} into {weight_map[absent[0]]}, which does not hold it; copy it again")
    return stored


def identity(path: epath.PathLike, manifest: str = "") -> dict[str, Any]:
    """What lineage.json says of an imported checkpoint: its path, and sha256 and size of the files that identify it.

    Args:
      path: as of `open_checkpoint`.
      manifest: the file that has the digests of all tensors of a release; without it every file of tensors is hashed.
    """
    path = storage.absolute(path)
    if manifest:
        files = [path / manifest]
    else:
        main = _main_file(path) if storage.is_folder(path) else path
        shards = shards_of(main) if main.name in INDEX_NAMES else []
        files = [main, *(main.parent / shard for shard in shards)]
    digests = list(streaming.in_order(artifacts.sha256_of, files))
    about = {file.name: {"sha256": d, "bytes": storage.size(file)} for file, d in zip(files, digests, strict=True)}
    return {"path": str(path), "files": about}


def check_tensors(
    where: epath.PathLike,
    stored: Mapping[str, Stored],
    tensors: Iterable[Tensor],
    left_out: re.Pattern[str] | None = None,
) -> None:
    """Compares what is stored with what the model needs.

    Args:
      where: the checkpoint, for the message.
      stored: from `open_checkpoint`.
      tensors: what must be there, and nothing else.
      left_out: names that may be there besides.

    Raises:
      UserError: naming the first tensor that is missing, unknown or misshapen.
    """
    needed: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        name, shape = tensor.name, tensor.shape
        needed[name] = shape
        if name not in stored:
            raise UserError(f"{where} lacks the tensor {name}, which the model's config needs{nearest(name, stored)}")
        if stored[name].shape != shape:
            raise UserError(f"{name} in {where} has shape {stored[name].shape}, the model's config needs {shape}")
    for name in stored:
        if name not in needed and not (left_out and left_out.fullmatch(name)):
            raise UserError(
                f"{where} has the tensor {name}, which the model's config does not know{nearest(name, needed)}"
            )
