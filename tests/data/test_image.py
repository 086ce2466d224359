"""Decoding and the released resize."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_jax.data import fast_image
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


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 150), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_fast_resize_is_pillows_bitwise(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).choice(np.array([0, 3, 128, 255], np.uint8), (height, width, 3))
    out = np.zeros((size, size, 3), np.uint8)
    fast_image.resize_square(pixels, out)
    np.testing.assert_array_equal(out, resize_square(Image.fromarray(pixels), size))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "progressive", "4:2:0", "4:4:4", "cut", "not a JPEG", "PNG"])
def test_images_come_out_alike_with_and_without_the_fast_packages(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only Pillow can say what an image is, or that it is none."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)
    image, payload = Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC), io.BytesIO()
    image = image.convert(mode) if mode in ("L", "CMYK") else image
    options = {"progressive": mode == "progressive", "subsampling": mode if ":" in mode else "4:2:2"}
    image.save(payload, "PNG" if mode == "PNG" else "JPEG", **({} if mode == "PNG" else options))
    encoded = payload.getvalue()
    encoded = {"cut": encoded[:-3000], "not a JPEG": b"\xff\xd8" + encoded[100:]}.get(mode, encoded)
    assert fast_image.agrees()
    assert (fast_image.decode_jpeg(encoded) is None) == (mode in ("CMYK", "cut", "not a JPEG", "PNG"))

    def outcome() -> bytes | str:
        out = np.zeros((56, 56, 3), np.uint8)
        try:
            decode_into(encoded, out)
        except UserError as error:
            return str(error)
        return out.tobytes()

    fast = outcome()
    monkeypatch.setattr(image_module, "_fast", lambda: None)
    assert outcome() == fast
    assert isinstance(fast, str) == (mode in ("cut", "not a JPEG"))
