"""Reads and writes PyTorch checkpoint files (`.bin`, `.pt`) without executing their pickles.

`torch.load` with `weights_only` reads only the descriptions of the tensors, in a mode without memory allocation. The
bytes are then read from the file one tensor at a time, as with safetensors.
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
_PREFIX = "module."  # added to the names of a model that was saved inside DistributedDataParallel


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
    """Locates the tensors of one file by name. Those of a training checkpoint are in its `state_dict`.

    Raises:
      UserError: if the file is damaged, contains anything but tensors, or a tensor has an unsupported form.
      FileNotFoundError: if there is no such file.
    """
    torch = _torch()
    dtypes = _dtypes()
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
            f"{path} contains objects other than tensors, which could execute code, or is damaged; save only the "
            "state_dict"
        ) from None
    except Exception:  # a damaged archive of pickles can raise anything
        raise UserError(f"{path} is not a complete PyTorch checkpoint; copy it again") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise UserError(f"{path} is not a state_dict of tensors; save one with torch.save(model.state_dict(), ..)")
    tensors: dict[str, Stored] = {}
    for name, tensor in state.items():
        if tensor.dtype not in dtypes:
            raise UserError(
                f"{name} in {path} is stored as {tensor.dtype}; only float32, bfloat16 and float16 are supported"
            )
        try:
            begin = tensor.untyped_storage()._checkpoint_offset if tensor.is_contiguous() else None
        except Exception:  # sparse, quantised and other tensors without plain bytes
            begin = None
        if begin is None:
            raise UserError(
                f"{name} in {path} is stored in an old or non-contiguous form; save the file again with torch 2"
            )
        dtype = dtypes[tensor.dtype]
        start = begin + tensor.storage_offset() * dtype.itemsize
        end = start + tensor.numel() * dtype.itemsize
        if start < 0 or end > total:
            raise UserError(f"{path} ends in the middle of {name}: the file is truncated; copy it again")
        plain = name.removeprefix(_PREFIX)
        if plain in tensors:
            raise UserError(f"{path} has the tensor {plain} twice, with and without {_PREFIX!r}; save it once")
        tensors[plain] = Stored(path, dtype, tuple(tensor.shape), start, end)
    return tensors


def write_shard(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to one file. Equal tensors in equal order give equal bytes."""
    torch = _torch()
    as_torch = {}
    for name, array in tensors.items():
        if array.dtype == ml_dtypes.bfloat16:
            as_torch[name] = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            as_torch[name] = torch.from_numpy(array)
    with storage.local_output(path) as local, local.open("wb") as file:
        torch.save(as_torch, file)
