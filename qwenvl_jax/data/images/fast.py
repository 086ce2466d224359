"""Decoding and resizing to the same bits as `exact`, which uses Pillow, at about twice its speed.

Needs the packages numba and simplejpeg. `decode.decode_into` uses this module if both are installed and `agrees` is
true.

Pillow filters horizontally, then vertically, with fixed-point weights, and rounds to 8 bits in between. Here both
directions are sums of weighted rows, which compilers vectorise; for the horizontal one the image is transposed.
"""

from __future__ import annotations

import functools
import io
import math

import numba
import numpy as np
import simplejpeg
from PIL import Image

from qwenvl_jax.data.images import exact

PRECISION = 22  # bits of a weight behind the point, as in Pillow
_TILE = 16
_SMALL = 2048  # pixels of a side; weights for longer ones are seldom wanted twice

_jit = numba.njit(nogil=True, cache=True)


def decode_jpeg(payload: bytes) -> np.ndarray | None:
    """RGB pixels [H, W, 3] uint8 of a JPEG. None if it is damaged, no JPEG, or must be left to Pillow (e.g. CMYK)."""
    if not payload.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(payload)
        if colors not in ("YCbCr", "Gray") or not exact.bearable(width, height):
            return None
        if exact.scans(payload) > exact.MAX_SCANS:
            return None
        return simplejpeg.decode_jpeg(payload)
    except ValueError:
        return None


def resize_square(pixels_HWC: np.ndarray, out_HWC: np.ndarray) -> None:
    """Resizes [H, W, 3] into [S, S, 3] by Pillow's antialiased bicubic (a = -0.5); both uint8 and contiguous."""
    height, width, _ = pixels_HWC.shape
    size = out_HWC.shape[0]
    if exact.resizes_height_first(width, height, size):
        short = np.empty((size, width, 3), np.uint8)
        _weighted_rows(pixels_HWC.reshape(height, -1), *_weights(height, size), short.reshape(size, -1))
        pixels_HWC = short
    resize_window(pixels_HWC, (size, size), (0, 0), out_HWC)


def resize_window(pixels_HWC: np.ndarray, size: tuple[int, int], corner: tuple[int, int], out_HWC: np.ndarray) -> None:
    """Resizes as Pillow, first the width, and computes only a window of the result.

    Args:
      pixels_HWC: uint8 [H, W, 3], contiguous.
      size: width and height of the whole result.
      corner: left and top of the window.
      out_HWC: uint8, contiguous; its shape is that of the window.
    """
    height, width, _ = pixels_HWC.shape
    rows, columns, _ = out_HWC.shape
    left, top = corner
    if width != size[0]:
        turned = np.empty((width, height, 3), np.uint8)
        _transpose(pixels_HWC, turned)
        narrow = np.empty((columns, height, 3), np.uint8)
        weights = _weights(width, size[0], slice(left, left + columns))
        _weighted_rows(turned.reshape(width, -1), *weights, narrow.reshape(columns, -1))
        pixels_HWC = np.empty((height, columns, 3), np.uint8)
        _transpose(narrow, pixels_HWC)
    elif width != columns:
        pixels_HWC = np.ascontiguousarray(pixels_HWC[:, left : left + columns])
    if height != size[1]:
        weights = _weights(height, size[1], slice(top, top + rows))
        _weighted_rows(pixels_HWC.reshape(height, -1), *weights, out_HWC.reshape(rows, -1))
    else:
        out_HWC[...] = pixels_HWC[top : top + rows]


@functools.cache
def agrees() -> bool:
    """Whether Pillow, as it was built for this machine, gives the same bits."""
    rng = np.random.default_rng(0)
    for height, width, size in ((61, 97, 28), (20, 33, 56), (31, 31, 28)):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        payload = io.BytesIO()
        noise.save(payload, "JPEG", quality=90)
        decoded, out = decode_jpeg(payload.getvalue()), np.zeros((size, size, 3), np.uint8)
        expected = exact.decode_image(payload.getvalue())
        if decoded is None or not np.array_equal(decoded, np.asarray(expected)):
            return False
        resize_square(decoded, out)
        if not np.array_equal(out, exact.resize_square(expected, size)):
            return False
    return True


def _weights(old: int, new: int, window: slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_make_weights` of the new pixels in a window.

    They are remembered: a table for 640 pixels takes 20 kB, one for 65,535 takes a megabyte.
    """
    firsts, counts, weights = _small_weights(old, new) if old <= _SMALL else _large_weights(old, new)
    return firsts[window], counts[window], weights[window]


def _make_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every new pixel: its first old pixel, how many it uses, and their fixed-point weights [new, ..]."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    firsts = np.zeros(new, np.int32)
    counts = np.zeros(new, np.int32)
    weights = np.zeros((new, math.ceil(support) * 2 + 1), np.int32)
    for pixel in range(new):
        center = (pixel + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), old) - first
        x = np.abs((np.arange(count) + first - center + 0.5) * (1.0 / stretch))
        near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        curve = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        fixed = curve * (1.0 / sum(curve.tolist())) * (1 << PRECISION)  # summed from the left, as Pillow does
        weights[pixel, :count] = np.trunc(np.where(fixed < 0, fixed - 0.5, fixed + 0.5))
        firsts[pixel] = first
        counts[pixel] = count
    return firsts, counts, weights


_small_weights = functools.lru_cache(maxsize=4096)(_make_weights)
_large_weights = functools.lru_cache(maxsize=128)(_make_weights)


@_jit
def _weighted_rows(
    rows: np.ndarray, firsts: np.ndarray, counts: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """out[y] = sum over t < counts[y] of weights[y, t] * rows[firsts[y] + t], rounded and clipped."""
    length = rows.shape[1]
    total = np.empty(length, np.int32)
    for y in range(out.shape[0]):
        total[:] = 1 << (PRECISION - 1)
        for t in range(counts[y]):
            weight = weights[y, t]
            row = rows[firsts[y] + t]
            for i in range(length):
                total[i] += np.int32(row[i]) * weight
        for i in range(length):
            out[y, i] = min(max(total[i] >> PRECISION, 0), 255)


@_jit
def _transpose(pixels: np.ndarray, out: np.ndarray) -> None:
    """out[x, y] = pixels[y, x], by tiles that stay in the cache."""
    height, width = pixels.shape[:2]
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            for x in range(left, min(left + _TILE, width)):
                for y in range(top, min(top + _TILE, height)):
                    for c in range(3):
                        out[x, y, c] = pixels[y, x, c]
