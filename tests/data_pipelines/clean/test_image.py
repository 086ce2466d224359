"""Hostile and unusual pictures: a stated rule for each, and whatever passes can be trained on."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.clean.image import aspect_ratio, open_pictures, smallest_side
from data_pipelines.clean.rule import Rewritten, rule
from data_pipelines.pair import Line, Picture, RawPair, Region
from qwenvl_jax.data.images.exact import decode_image
from tests.support.cleaning import verdict


def pixels(width: int = 40, height: int = 30, channels: int = 3) -> np.ndarray:
    """A smooth picture that is different in its four corners."""
    y, x = np.mgrid[0:height, 0:width]
    layers = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) * 2, np.full_like(x, 255)]
    return np.stack(layers[:channels], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pair_with(*payloads: bytes, width: int = 0, height: int = 0, **annotations: object) -> RawPair:
    pictures = tuple(Picture(payload, width=width, height=height) for payload in payloads)
    return RawPair("a", "test", "CC0-1.0", pictures=pictures, **annotations)  # type: ignore[arg-type]


def opened(pair: RawPair, **options: object) -> Picture:
    after = verdict(open_pictures, pair, **options)
    assert isinstance(after, RawPair), after
    (picture,) = after.pictures
    assert picture.read() and (picture.width, picture.height) == decode_image(picture.read()).size
    assert verdict(open_pictures, after, **options) is after
    return picture


def causes(pair: RawPair) -> tuple[str, ...]:
    judged = rule(open_pictures)(pair)
    assert isinstance(judged, Rewritten)
    return judged.causes


RGB = Image.fromarray(pixels())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats_that_training_reads_keep_their_bytes(form: str) -> None:
    payload = encoded(RGB, form)
    picture = opened(pair_with(payload))
    assert picture.encoded == payload and (picture.width, picture.height) == (40, 30)


@pytest.mark.parametrize("image", [RGB.convert("CMYK"), RGB.convert("L")])
def test_cmyk_and_grey_jpegs_keep_their_bytes(image: Image.Image) -> None:
    payload = encoded(image, "JPEG")
    assert opened(pair_with(payload), decode=True).encoded == payload


@pytest.mark.parametrize("image", [RGB.quantize(16), RGB.convert("1"), Image.fromarray(pixels(channels=4))])
def test_palettes_bits_and_opaque_alpha_keep_their_bytes(image: Image.Image) -> None:
    payload = encoded(image)
    assert opened(pair_with(payload)).encoded == payload


def test_a_lying_extension_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "fox.jpg").write_bytes(encoded(RGB, "PNG"))
    pair = RawPair("a", "t", "x", pictures=(Picture(path=str(tmp_path / "fox.jpg")),))
    assert opened(pair).encoded == (tmp_path / "fox.jpg").read_bytes()


def test_a_missing_file_is_an_error_of_the_row(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none\.jpg"):
        open_pictures(RawPair("a", "t", "x", pictures=(Picture(path=str(tmp_path / "none.jpg")),)))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises these sides."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "not a JPEG, PNG, WebP, GIF or BMP"),
        (encoded(RGB, "TIFF"), "not a JPEG, PNG, WebP, GIF or BMP"),
        (encoded(RGB, "PDF"), "not a JPEG, PNG, WebP, GIF or BMP"),
        (encoded(RGB, "JPEG")[:20], "not a JPEG, PNG, WebP, GIF or BMP"),
        (bomb(30_000, 30_000), "too many pixels"),
        (bomb(70_000, 10), "too many pixels"),
        (encoded(RGB, "JPEG") + b"\xff\xda" * 200, "too slow to decode"),
        (encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]), "animated"),
        (encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)]), "animated"),
        (encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(90)]), "animated"),
        (encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0))), "fully transparent"),
    ],
)
def test_pictures_that_are_dropped(payload: bytes, reason: str) -> None:
    assert verdict(open_pictures, pair_with(payload)) == reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_pictures_are_noticed_by_decoding(form: str) -> None:
    payload = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), form)
    cut = payload[: len(payload) * 2 // 3]
    assert verdict(open_pictures, pair_with(cut), decode=True) in (
        "truncated or damaged",
        "not a JPEG, PNG, WebP, GIF or BMP",
    )
    assert opened(pair_with(payload), decode=True).encoded == payload


def test_animated_pictures_can_stay_as_their_first_frame() -> None:
    payload = encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)])
    assert opened(pair_with(payload), frames="first").encoded == payload


def test_16_bit_grey_is_scaled() -> None:
    deep = (np.arange(900, dtype=np.uint16).reshape(30, 30)) * 72
    pair = pair_with(encoded(Image.fromarray(deep)))
    seen = np.asarray(decode_image(opened(pair).read()))[..., 0]
    np.testing.assert_array_equal(seen, deep >> 8)
    assert causes(pair) == ("16 bits scaled to 8",)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparent_pictures_are_laid_on_white(form: str) -> None:
    layers = pixels(channels=4)
    layers[:10, :, 3] = 0
    layers[10:20, :, 3] = 128
    pair = pair_with(
        encoded(Image.fromarray(layers), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    )
    seen = np.asarray(decode_image(opened(pair).read())).astype(int)
    alpha = layers[..., 3:].astype(int)
    expected = (layers[..., :3] * alpha + 255 * (255 - alpha)) / 255
    assert abs(seen - expected).max() <= 1
    assert causes(pair) == ("laid on white",)


def test_transparent_palettes_are_laid_on_white() -> None:
    image = RGB.quantize(8)
    index = np.asarray(image)[0, 0]
    seen = decode_image(opened(pair_with(encoded(image, transparency=int(index)))).read())
    assert seen.getpixel((0, 0)) == (255, 255, 255)


def turned_jpeg(orientation: int, form: str = "JPEG") -> bytes:
    """A picture stored so that a viewer that follows EXIF shows `RGB`."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB.transpose(back[orientation]), form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_pictures_are_turned_as_exif_says(orientation: int, form: str) -> None:
    pair = pair_with(turned_jpeg(orientation, form))
    seen = np.asarray(decode_image(opened(pair).read())).astype(int)
    assert abs(seen - pixels()).mean() < 12
    assert causes(pair) == ("turned as EXIF says",)


BOX = (Region("fox", ((2.0, 4.0, 10.0, 20.0),)),)


def test_boxes_keep_a_picture_as_stored() -> None:
    payload = turned_jpeg(6)
    assert opened(pair_with(payload, width=30, height=40, regions=BOX)).encoded == payload


def test_boxes_measured_on_the_turned_picture_turn_it() -> None:
    picture = opened(pair_with(turned_jpeg(6), width=40, height=30, regions=BOX))
    assert (picture.width, picture.height) == (40, 30)


def test_a_wrong_size_is_corrected_and_boxes_follow() -> None:
    quad = ((0.0, 0.0), (80.0, 0.0), (80.0, 60.0), (0.0, 60.0))
    payload = encoded(RGB)
    pair = pair_with(payload, width=80, height=60, regions=BOX, lines=(Line("x", quad),))
    after = verdict(open_pictures, pair)
    assert isinstance(after, RawPair)
    assert after.regions[0].boxes == ((1.0, 2.0, 5.0, 10.0),)
    assert after.lines[0].quad == ((0.0, 0.0), (40.0, 0.0), (40.0, 30.0), (0.0, 30.0))
    assert causes(pair) == ("stated size corrected",)
    assert opened(pair_with(payload, width=7, height=60)).width == 40
    assert verdict(open_pictures, pair_with(payload, width=7, height=60, regions=BOX)) == (
        "the stated size is of another picture"
    )


def test_boxes_in_thousandths_need_no_size() -> None:
    turns = ({"role": "user", "parts": ({"ref": "fox", "boxes": ((1, 2, 3, 4),)},)},)
    pair = pair_with(encoded(RGB), width=7, height=60, turns=turns, in_thousandths=True)
    assert (opened(pair).width, opened(pair).height) == (40, 30)
    assert verdict(open_pictures, dataclasses.replace(pair, in_thousandths=False)) == (
        "the stated size is of another picture"
    )


def test_sizes_and_shapes() -> None:
    thin = pair_with(encoded(Image.new("RGB", (90, 30))), width=90, height=30)
    assert verdict(smallest_side, thin, least=30) is thin
    assert verdict(smallest_side, thin, least=31) == "too small"
    assert verdict(aspect_ratio, thin, most=3.0) is thin
    assert verdict(aspect_ratio, thin, most=2.9) == "too elongated"
    assert verdict(aspect_ratio, pair_with(encoded(RGB)), most=3.0) == "unknown size"
    dot = verdict(open_pictures, pair_with(encoded(Image.new("RGB", (1, 1)))))
    assert isinstance(dot, RawPair) and verdict(smallest_side, dot, least=2) == "too small"


VALID = [encoded(RGB, form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0.2, 1))
def test_damaged_bytes_never_raise(payload: bytes, changes: list[tuple[float, int]], length: float) -> None:
    damaged = bytearray(payload)
    for position, value in changes:
        damaged[int(position * (len(damaged) - 1))] = value
    after = verdict(open_pictures, pair_with(bytes(damaged[: int(length * len(damaged))])), decode=True)
    if isinstance(after, RawPair):
        picture = after.pictures[0]
        assert decode_image(picture.read(), stated=(picture.width, picture.height))
