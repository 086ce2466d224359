"""PyTorch's own checkpoint files (`.bin`, `.pt`): their tensors found and read without running what they pickle.

`torch.load` with `weights_only` reads the description of the tensors alone, in a mode that gives them no memory; the
bytes are then read from the file like those of safetensors, one tensor at a time.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from qwenvl_jax.conversion.tensor_files import Stored
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

SUFFIXES = (".bin", ".pt", ".pth")
INDEX_NAME = "pytorch_model.bin.index.json"
_PREFIX = "module."  # of a model saved inside DistributedDataParallel


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(".bin files need PyTorch; run `pip install -r requirements-convert.txt`") from None
    return torch


def _dtypes() -> dict[Any, np.dtype]:
    torch = _torch()
    return {
        torch.float32: np.dtype(np.float32),
        torch.float16: np.dtype(np.float16),
        torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    }


def read_header(path: epath.Path) -> dict[str, Stored]:
    """The tensors of one file, by name; those of a training checkpoint lie under its `state_dict`.

    Raises:
      UserError: if the file is damaged, holds more than tensors, or a tensor that is not read.
      FileNotFoundError: if there is none.
    """
    torch, dtypes = _torch(), _dtypes()
    from torch._subclasses.fake_tensor import FakeTensorMode

    total = storage.size(path)
    artifacts.refuse_pointer(path, storage.read_bytes(path, 0, 64))
    try:
        with storage.open_read(path) as file, FakeTensorMode():
            loaded = torch.load(file, weights_only=True, map_location="cpu")
    except (StorageError, IsADirectoryError, MemoryError):
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, which would run code when read, or is damaged; save its state_dict alone"
        ) from None
    except Exception:  # the format is an archive of pickles, and anything may be wrong in it
        raise UserError(f"{path} is not a whole PyTorch checkpoint; copy it again") from None
    found = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"{path} is not a state_dict of tensors; save one with torch.save(model.state_dict(), ..)")
    tensors: dict[str, Stored] = {}
    for name, tensor in found.items():
        if tensor.dtype not in dtypes:
            raise UserError(f"{name} in {path} is stored as {tensor.dtype}; only float32, bfloat16, float16 are read")
        try:
            begin = tensor.untyped_storage()._checkpoint_offset if tensor.is_contiguous() else None
        except Exception:  # sparse, quantised and other tensors without plain bytes
            begin = None
        if begin is None:
            raise UserError(f"{name} in {path} is stored in an old or scattered form; save the file again with torch 2")
        dtype = dtypes[tensor.dtype]
        start = begin + tensor.storage_offset() * dtype.itemsize
        end = start + tensor.numel() * dtype.itemsize
        if start < 0 or end > total:
            raise UserError(f"{path} ends in the middle of {name}: the file is cut short; copy it again")
        plain = name.removeprefix(_PREFIX)
        if plain in tensors:
            raise UserError(f"{path} holds the tensor {plain} twice, with and without {_PREFIX!r}; save it once")
        tensors[plain] = Stored(path, dtype, tuple(tensor.shape), start, end)
    return tensors


def write_shard(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file of tensors. Equal tensors in equal order give equal bytes."""
    torch = _torch()
    as_torch = {}
    for name, array in tensors.items():
        if array.dtype == ml_dtypes.bfloat16:
            as_torch[name] = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            as_torch[name] = torch.from_numpy(array)
    with storage.local_output(path) as local, local.open("wb") as file:
        torch.save(as_torch, file)
