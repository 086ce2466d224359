"""Decoding and the released resize."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from qwenvl_jax.data.images import decode, exact, fast
from qwenvl_jax.data.images.decode import decode_into
from qwenvl_jax.data.images.exact import decode_image, resize_square
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import encoded_image


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
    monkeypatch.setattr(exact, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match="too large"):
        decode_image(encoded_image(1))


def test_a_draft_differs_little_and_only_for_large_jpegs() -> None:
    x, y = np.meshgrid(np.arange(2000), np.arange(1600))
    pixels = np.stack([x % 256, (x // 8 + y) % 256, (x * y // 4096) % 256], -1).astype(np.uint8)
    smooth = Image.fromarray(pixels).resize((100, 80)).resize((2000, 1600), Image.Resampling.BICUBIC)
    for form, size, is_exact in (("JPEG", 224, False), ("JPEG", 1000, True), ("PNG", 224, True)):
        payload = io.BytesIO()
        smooth.save(payload, form)
        plain, draft = (np.zeros((size, size, 3), np.uint8) for _ in range(2))
        decode_into(payload.getvalue(), plain)
        decode_into(payload.getvalue(), draft, draft=True)
        difference = np.abs(plain.astype(int) - draft.astype(int))
        np.testing.assert_array_equal(plain, resize_square(decode_image(payload.getvalue()), size))
        assert (difference.max() == 0) == is_exact
        assert difference.mean() < 1 and difference.max() <= 16


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 150), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_fast_resize_is_pillows_bitwise(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).choice(np.array([0, 3, 128, 255], np.uint8), (height, width, 3))
    out = np.zeros((size, size, 3), np.uint8)
    fast.resize_square(pixels, out)
    np.testing.assert_array_equal(out, resize_square(Image.fromarray(pixels), size))


@given(st.integers(1, 100), st.integers(1, 16), st.integers(1, 150), st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_the_fast_window_in_the_middle_is_pillows_bitwise(
    shorter: int, ratio: int, size: int, turned: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    longer = int(draw.integers(shorter, shorter * ratio + 1))
    shape = (longer, shorter, 3) if turned else (shorter, longer, 3)
    pixels = draw.choice(np.array([0, 3, 128, 255], np.uint8), shape)
    out = np.zeros((size, size, 3), np.uint8)
    fast.resize_window(pixels, *exact.center_window(shape[1], shape[0], size), out)
    np.testing.assert_array_equal(out, exact.resize_center(Image.fromarray(pixels), size))


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
    assert fast.agrees()
    assert (fast.decode_jpeg(encoded) is None) == (mode in ("CMYK", "cut", "not a JPEG", "PNG"))

    def outcome() -> bytes | str:
        out = np.zeros((56, 56, 3), np.uint8)
        try:
            decode_into(encoded, out)
        except UserError as error:
            return str(error)
        return out.tobytes()

    quick = outcome()
    monkeypatch.setattr(decode, "_fast", lambda: None)
    assert outcome() == quick
    assert isinstance(quick, str) == (mode in ("cut", "not a JPEG"))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    payload = io.BytesIO()
    image.save(payload, form, **options)
    return payload.getvalue()


RED = Image.new("RGB", (9, 7), "red")


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "ICNS", "DDS", "SGI", "EPS", "PDF"])
def test_only_formats_of_the_web_are_decoded(form: str) -> None:
    image = Image.new("RGB", (64, 64), "red")
    with pytest.raises(UserError, match=r"not a readable image \(UnidentifiedImageError\); JPEG, PNG, WEBP, GIF, BMP"):
        decode_image(saved(image, form))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats_of_the_web(form: str) -> None:
    decoded = decode_image(saved(RED, form))
    assert decoded.size == (9, 7) and np.abs(np.asarray(decoded, int) - (255, 0, 0)).max() < 8


def test_no_picture_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript from the web is a program; Pillow hands it to whatever is called gs."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho ran > {ran}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    payload = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="not a readable image"):
        decode_image(payload)
    assert not ran.exists()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        Image.open(io.BytesIO(payload)).load()
    assert ran.exists()  # which shows that this is how it would have happened


def test_several_frames_and_views_are_one_picture() -> None:
    """The first, however many there are: GIF, PNG, WebP, and the two views of a camera's JPEG."""
    blue = Image.new("RGB", (9, 7), "blue")
    for form in ("GIF", "PNG", "WEBP", "MPO"):
        payload = saved(RED, form, save_all=True, append_images=[blue] * 3, duration=10)
        assert np.asarray(decode_image(payload))[3, 3].tolist() == pytest.approx([255, 0, 0], abs=8), form


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_alpha_is_dropped_as_in_the_released_model(mode: str) -> None:
    """Black words on nothing are black on black."""
    words = Image.new("L", (8, 8)).convert(mode) if mode == "P" else Image.new(mode, (8, 8))
    payload = saved(words, "PNG", **({"transparency": 0} if mode == "P" else {}))
    assert not np.asarray(decode_image(payload)).any()
    np.testing.assert_array_equal(
        np.asarray(decode_image(payload)), np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
    )


def test_grey_of_sixteen_bits_is_clipped_as_in_the_released_model() -> None:
    grey = Image.fromarray(np.array([[0, 100, 255, 256, 30_000, 65_535]], np.uint16))
    decoded = np.asarray(decode_image(saved(grey, "PNG")))
    assert decoded[0, :, 0].tolist() == [0, 100, 255, 255, 255, 255]


def test_exif_does_not_rotate() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(saved(RED, "JPEG", exif=exif)).size == (9, 7)


def test_strips_are_refused_before_they_are_resized() -> None:
    """A strip of one pixel's width would need room for its whole length at the new width."""
    longest = saved(Image.new("1", (1, exact.MAX_SIDE)), "PNG")
    out = np.ones((8, 8, 3), np.uint8)
    decode_into(longest, out)
    assert not out.any()
    for size in ((1, exact.MAX_SIDE + 1), (exact.MAX_SIDE + 1, 1)):
        for draft in (False, True):
            with pytest.raises(UserError, match="too large"):
                decode_into(saved(Image.new("1", size), "PNG"), out, draft)


@pytest.mark.parametrize("fast", [True, False])
def test_pictures_made_to_keep_a_decoder_busy_are_refused(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode, "_fast", lambda: None)
    payload = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last, end = payload.rindex(b"\xff\xda"), payload.rindex(b"\xff\xd9")
    out = np.zeros((8, 8, 3), np.uint8)
    decode_into(payload[:last] + payload[last:end] * 50 + payload[end:], out)
    with pytest.raises(UserError, match="scans takes too long"):
        decode_into(payload[:last] + payload[last:end] * 200 + payload[end:], out)
    runs = b"\0\0" * (exact.MAX_RUNS // 2)
    header = struct.pack("<IiiHHIIiiII", 40, 99, 99, 1, 8, 1, len(runs), 0, 0, 256, 0)
    with pytest.raises(UserError, match="run lengths"):
        decode_into(b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs, out)


def test_texts_that_unpack_to_gigabytes_are_not_unpacked() -> None:
    payload = saved(RED, "PNG")
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 28), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(UserError):
        decode_image(payload[:33] + chunk * 3 + payload[33:])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_stated_size_is_compared(form: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decode, "_fast", lambda: None)
    payload, out = encoded_image(3, 90, 61, form), np.zeros((28, 28, 3), np.uint8)
    for draft in (False, True):
        decode_into(payload, out, draft, (90, 61))
        decode_into(payload, out, draft, (90.0, 61.0))
        for wrong in ((61, 90), (90, 60), (91, 61), (45, 30)):
            with pytest.raises(UserError, match=f"has 90 x 61 pixels .* says {wrong[0]} x {wrong[1]}"):
                decode_into(payload, out, draft, wrong)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), st.data())
@settings(deadline=None, max_examples=120)
def test_damaged_pictures_are_images_or_user_errors(form: str, data: st.DataObject) -> None:
    payload = bytearray(encoded_image(5, 40, 30, form))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(len(payload) // 2, len(payload)))]
    out = np.zeros((28, 28, 3), np.uint8)
    with contextlib.suppress(UserError):
        decode_into(bytes(payload), out)
