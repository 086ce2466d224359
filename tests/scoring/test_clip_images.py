"""The pixels that CLIP sees against OpenCLIP's transform, by golden files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.data.images import decode
from qwenvl_jax.data.images.decode import decode_center_into
from qwenvl_jax.runtime.errors import UserError
from tests.scoring.clip_files import GOLDEN

pytestmark = pytest.mark.parametrize("fast", [True, False], indirect=True)


@pytest.fixture
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(decode, "_fast", lambda: None)


SIZE = 32  # of make_golden.py
# Pictures that OpenCLIP scales before they become RGB, and the mean difference in grey levels.
SCALED_FIRST = {"transparent": 20.0, "palette": 12.0, "cmyk": 2.0}


def golden() -> dict[str, tuple[bytes, np.ndarray]]:
    arrays = np.load(GOLDEN / "pictures.npz")
    names = {name.split("/")[0] for name in arrays}
    return {name: (arrays[f"{name}/encoded"].tobytes(), arrays[f"{name}/pixels"]) for name in sorted(names)}


@pytest.mark.parametrize("name", golden())
def test_the_pixels_are_those_of_openclip(name: str, fast: None) -> None:
    payload, expected = golden()[name]
    pixels = middle(payload, SIZE)
    if name in SCALED_FIRST:
        difference = np.abs(pixels.astype(int) - expected).mean()
        print(f"{name}: mean difference {difference:.2f} grey levels")
        assert 0 < difference < SCALED_FIRST[name]
    else:
        np.testing.assert_array_equal(pixels, expected)


def middle(payload: bytes, size: int) -> np.ndarray:
    pixels_HWC = np.zeros((size, size, 3), np.uint8)
    decode_center_into(payload, pixels_HWC)
    return pixels_HWC


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_strip_is_cut_before_it_is_scaled(turned: bool, fast: None) -> None:
    strip = np.random.default_rng(0).integers(60, 190, (40, 40 * 17, 3)).astype(np.uint8)
    long = np.repeat(np.array([[[0] * 3], [[255] * 3]], np.uint8), 15_000, axis=0).transpose(1, 0, 2)
    scaled_size = (17 * SIZE, SIZE)
    box = (8 * SIZE, 0, 9 * SIZE, SIZE)
    if turned:
        strip, long = (pixels.transpose(1, 0, 2) for pixels in (strip, long))
        scaled_size, box = (scaled_size[::-1], (box[1], box[0], box[3], box[2]))
    expected = np.asarray(Image.fromarray(strip).resize(scaled_size, Image.Resampling.BICUBIC).crop(box))
    assert np.abs(middle(encoded(strip), SIZE).astype(int) - expected).max() <= 2
    pixels = middle(encoded(long), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.min() < 10 and pixels.max() > 245


def test_bytes_that_are_not_a_picture_are_refused(fast: None) -> None:
    with pytest.raises(UserError, match="not a readable image"):
        middle(b"GIF89a broken", SIZE)
