"""Decoding and the released resize."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.data import image as image_module
from qwenvl_jax.data.image import decode_image, decode_into, resize_square
from qwenvl_jax.runtime.errors import UserError

from .record_samples import encoded_image


@pytest.mark.parametrize(("width", "height"), [(37, 90), (448, 448), (300, 112), (20, 20), (112, 112)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_resize_is_pillows_bicubic_bitwise(width: int, height: int, form: str) -> None:
    payload = encoded_image(width, width, height, form)
    expected = Image.open(io.BytesIO(payload)).convert("RGB").resize((112, 112), Image.Resampling.BICUBIC)
    pixels = resize_square(decode_image(payload), 112)
    assert pixels.shape == (112, 112, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    payload = io.BytesIO()
    Image.new(mode, (5, 4)).save(payload, "JPEG" if mode == "CMYK" else "PNG")
    assert resize_square(decode_image(payload.getvalue()), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("payload", [b"", b"no image at all", encoded_image(1)[:200], encoded_image(1)[:8]])
def test_what_is_no_image(payload: bytes) -> None:
    with pytest.raises(UserError, match="not a readable image"):
        decode_image(payload)


def test_huge_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match="too large"):
        decode_image(encoded_image(1))


def test_a_draft_differs_little_and_only_for_large_jpegs() -> None:
    x, y = np.meshgrid(np.arange(2000), np.arange(1600))
    pixels = np.stack([x % 256, (x // 8 + y) % 256, (x * y // 4096) % 256], -1).astype(np.uint8)
    smooth = Image.fromarray(pixels).resize((100, 80)).resize((2000, 1600), Image.Resampling.BICUBIC)
    for form, size, exact in (("JPEG", 224, False), ("JPEG", 1000, True), ("PNG", 224, True)):
        payload = io.BytesIO()
        smooth.save(payload, form)
        plain, draft = (np.zeros((size, size, 3), np.uint8) for _ in range(2))
        decode_into(payload.getvalue(), plain)
        decode_into(payload.getvalue(), draft, draft=True)
        difference = np.abs(plain.astype(int) - draft.astype(int))
        np.testing.assert_array_equal(plain, resize_square(decode_image(payload.getvalue()), size))
        assert (difference.max() == 0) == exact
        assert difference.mean() < 1 and difference.max() <= 16
