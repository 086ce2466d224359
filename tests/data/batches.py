"""The first batches of a config, and whether two lists of them are the same to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import Tokenizer


def take(config: Config, tokenizer: Tokenizer, count: int, **arguments: Any) -> list[Batch]:
    """The first `count` batches; `arguments` as for `make_loader`."""
    with make_loader(config, tokenizer, **arguments) as loader:
        return [next(loader) for _ in range(count)]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    """Every array of every batch, its dtype too."""
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        for name, x, y in zip(Batch._fields, left, right, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype
