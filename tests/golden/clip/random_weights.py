"""Random tensors that depend on their names and shapes alone, so that two programs make the same ones."""

from __future__ import annotations

import math
import zlib

import numpy as np


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32; norms near 1, small biases, and matrices that keep the variance."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("bias"):
        return 0.02 * noise
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * noise
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return noise * np.float32(fan_in**-0.5)


def random_images(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: smooth, like photographs."""
    coarse = np.random.default_rng(size).integers(0, 256, (count, 8, 8, 3))
    scale = size // 8
    return np.repeat(np.repeat(coarse, scale, 1), scale, 2).astype(np.uint8)


def random_tokens() -> np.ndarray:
    """int64 [4, 77]: texts of 1, 12, 40 and 75 tokens between the start and the end token, padded with 0."""
    rng = np.random.default_rng(5)
    tokens = np.zeros((4, 77), np.int64)
    for row, length in enumerate((1, 12, 40, 75)):
        tokens[row, : length + 2] = [49_406, *rng.integers(1, 49_000, length), 49_407]
    return tokens
