"""Finding the tensors of a checkpoint, ours or another's, and checking their names and shapes before any is read.

stored = open_checkpoint("Qwen-VL")                       # a folder with an index, or one file
check_tensors("Qwen-VL", stored, released_tensors(model))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from etils import epath

from qwenvl_jax.conversion import bin_files, tensor_files
from qwenvl_jax.conversion.mapping import Tensor
from qwenvl_jax.conversion.tensor_files import Stored
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError, nearest

INDEX_NAMES = (tensor_files.INDEX_NAME, bin_files.INDEX_NAME)
# Checkpoints of one file, as transformers and open_clip name them.
SINGLE_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def open_checkpoint(path: epath.PathLike) -> dict[str, Stored]:
    """Where every tensor of a checkpoint lies; nothing but headers is read.

    Args:
      path: a folder with an index and its shards or with one file of a usual name, or that file.

    Raises:
      UserError: if there is none, a shard is missing or damaged, or the index disagrees with the shards.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder or the file of a checkpoint")
    if not path.is_dir():
        return _read_file(path)
    for name in INDEX_NAMES:
        if (path / name).exists():
            return _read_index(path, path / name)
    for name in SINGLE_NAMES:
        if (path / name).exists():
            return _read_file(path / name)
    raise UserError(f"{path} holds no checkpoint: none of {', '.join((*INDEX_NAMES, *SINGLE_NAMES))} is there")


def _read_file(path: epath.Path) -> dict[str, Stored]:
    return (bin_files if path.suffix in bin_files.SUFFIXES else tensor_files).read_header(path)


def _read_index(folder: epath.Path, path: epath.Path) -> dict[str, Stored]:
    index = artifacts.read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{path} has no weight_map; copy the checkpoint again")
    stored: dict[str, Stored] = {}
    for shard in sorted(set(weight_map.values())):
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
    needed = {tensor.name: tensor.shape for tensor in tensors}
    for name, shape in needed.items():
        if name not in stored:
            raise UserError(f"{where} lacks the tensor {name}, which the model's config needs{nearest(name, stored)}")
        if stored[name].shape != shape:
            raise UserError(f"{name} in {where} has shape {stored[name].shape}, the model's config needs {shape}")
    for name in stored:
        if name not in needed and not (left_out and left_out.fullmatch(name)):
            raise UserError(
                f"{where} has the tensor {name}, which the model's config does not know{nearest(name, needed)}"
            )
