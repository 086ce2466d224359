"""How a release prepares pictures: the same by path, as Pillow pictures, by AutoImageProcessor and in training."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import shutil
import socketserver
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from qwenvl_jax.conversion import released_config
from qwenvl_jax.conversion.torch_model import visual
from qwenvl_jax.conversion.torch_model.visual import preprocess, read_image, to_square
from qwenvl_jax.data.images import exact as training
from qwenvl_jax.data.images.decode import decode_into
from qwenvl_jax.runtime import artifacts
from tests.conversion.torch_tiny import CODE

SIZE = 28


def noise(seed: int, shape: Any) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Any, kind: str) -> Any:
    payload = io.BytesIO()
    image.save(payload, kind)
    return payload.getvalue()


def same_pixels(left: Any, right: Any) -> bool:
    return np.array_equal(left, right)


def serve(handler: Any) -> Any:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def test_pictures_from_the_network_and_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(noise(1, (40, 60, 3)))
    picture.save("a.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server, address = serve(handler)
    for source in (f"{address}/a.png", f"file://{tmp_path}/a.png", str(tmp_path / "a.png"), "a.png"):
        assert same_pixels(read_image(source), picture)
    with pytest.raises(ValueError, match=rf"the image '{address}/x.png' cannot be read \(HTTPError"):
        read_image(f"{address}/x.png")
    server.shutdown()
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    for source in ("gone.png", "text.png", str(tmp_path), "\0", "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_image(source)


class Slow(socketserver.BaseRequestHandler):
    """A byte every tenth of a second, as long as somebody listens."""

    def handle(self) -> None:
        self.request.recv(1000)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while True:
                self.request.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass


def test_a_slow_server_and_a_large_file_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual, "SECONDS", 1)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="did not arrive within 1 seconds"):
            read_image(f"http://127.0.0.1:{server.server_address[1]}/a.png")
        server.shutdown()
    monkeypatch.setattr(visual, "MAX_BYTES", 1000)
    (tmp_path / "a.bmp").write_bytes(encoded(Image.new("RGB", (40, 40)), "BMP"))
    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        read_image(str(tmp_path / "a.bmp"))


def test_only_what_training_decodes_is_decoded(tmp_path: Path) -> None:
    assert visual.FORMATS == training.FORMATS
    for name in ("MAX_BYTES", "MAX_PIXELS", "MAX_SIDE", "MAX_SCANS", "MAX_RUNS"):
        assert getattr(visual, name) == getattr(training, name), name
    picture = Image.fromarray(noise(2, (9, 12, 3)))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "EPS", "TIFF", "PPM", "PCX"):
        path = tmp_path / "a.jpg"  # the name decides nothing
        path.write_bytes(encoded(picture, kind))
        if kind in visual.FORMATS:
            assert same_pixels(read_image(str(path)), training.decode_image(path.read_bytes()))
        else:
            with pytest.raises(ValueError, match=r"a\.jpg' cannot be read"):
                read_image(str(path))
    for size, message in (((70_000, 1), "70000 x 1 pixels are too many"), ((20_000, 20_000), "cannot be read")):
        path.write_bytes(encoded(Image.new("1", size), "PNG"))
        with pytest.raises(ValueError, match=message):
            read_image(str(path))


def test_a_name_with_an_accent_is_found_in_either_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    dark, light = Image.new("RGB", (2, 2), "black"), Image.new("RGB", (2, 2), "white")
    dark.save(tmp_path / decomposed)
    for name in (composed, decomposed):
        assert same_pixels(read_image(str(tmp_path / name)), dark)
    light.save(tmp_path / composed)
    for name in (composed, decomposed):  # NFC wins
        assert same_pixels(read_image(str(tmp_path / name)), light)


@given(st.integers(1, 90) | st.integers(100, 400), st.integers(1, 90) | st.integers(1, 4), st.sampled_from([5, 28]))
@settings(deadline=None, max_examples=80)
def test_squares_are_those_of_training(height: int, width: int, size: int) -> None:
    picture = Image.fromarray(noise(height * 100 + width, (height, width, 3)))
    square, pixels = to_square(picture, size), np.zeros((size, size, 3), np.uint8)
    assert same_pixels(square, training.resize_square(picture, size))
    decode_into(encoded(picture, "PNG"), pixels)
    assert same_pixels(square, pixels)


def test_squares_do_not_depend_on_the_version_of_pillow() -> None:
    """What Pillow 12.3 gives in one call. Its passes are in another order for tall pictures, and in Pillow 13."""
    digest = hashlib.sha256()
    for seed, shape in enumerate([(57, 55), (31, 22), (22, 31), (21, 10), (306, 2), (2, 306), (397, 3), (28, 28)]):
        picture = Image.fromarray(noise(seed, (*shape, 3)) // 128 * 255)
        digest.update(to_square(picture, SIZE).tobytes())
    assert digest.hexdigest() == "687f1397116d6e90bd602e0bffe4df2f7329475793242caa43fa1211d2bdb46f"


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("p") / "processor_release"
    folder.mkdir()
    for name in released_config.CODE_FILES:
        shutil.copy(CODE / name, folder / name)
    artifacts.write_json(folder / "preprocessor_config.json", released_config.preprocessor_config(SIZE))
    return AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=True)


def kinds_of_pictures() -> Any:
    colour = Image.fromarray(noise(3, (50, 31, 3)))
    alpha = Image.fromarray(noise(4, (50, 31, 4)))
    palette = colour.quantize(16)
    palette.info["transparency"] = 3
    deep = Image.fromarray(np.arange(0, 50 * 31 * 40, 40, dtype=np.uint16).reshape(50, 31))
    grey_alpha = Image.merge("LA", (colour.convert("L"), alpha.getchannel("A")))
    return {"colour": colour, "alpha": alpha, "palette": palette, "grey": colour.convert("L"), "deep": deep,
            "grey_alpha": grey_alpha, "bit": colour.convert("1")}  # fmt: skip


@pytest.mark.parametrize("kind", list(kinds_of_pictures()))
def test_every_way_to_give_a_picture_is_one(processor: Any, tmp_path: Path, kind: str) -> None:
    picture = kinds_of_pictures()[kind]
    path = tmp_path / "a.png"
    picture.save(path)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    decode_into(path.read_bytes(), pixels)
    statistics = np.array(released_config.IMAGE_MEAN), np.array(released_config.IMAGE_STD)
    expected = torch.from_numpy((pixels / 255 - statistics[0]) / statistics[1]).permute(2, 0, 1).float()[None]
    by_path = preprocess([read_image(str(path))], SIZE)
    torch.testing.assert_close(by_path, expected, rtol=0, atol=1e-6)
    for images in (Image.open(path), [Image.open(path)], str(path)):
        assert torch.equal(processor(images, return_tensors="pt").pixel_values, by_path)
    array = np.asarray(read_image(str(path)))
    assert torch.equal(processor(images=torch.from_numpy(array.copy()), return_tensors="pt").pixel_values, by_path)


def test_the_processor_has_one_way(processor: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 5))
    assert np.asarray(processor([picture, picture]).pixel_values).shape == (2, 3, SIZE, SIZE)
    with pytest.raises(TypeError, match="'do_resize' cannot be set"):
        processor(picture, do_resize=False)
    for wrong in (np.zeros((5, 5, 3)), np.zeros((5, 5), np.uint8), torch.zeros(3, 5, 5)):
        with pytest.raises(ValueError, match="pass Pillow images, paths, or uint8"):
            processor(wrong)
    processor.save_pretrained(str(tmp_path / "again"))
    again = AutoImageProcessor.from_pretrained(str(tmp_path / "again"), trust_remote_code=True)
    assert torch.equal(again(picture, return_tensors="pt").pixel_values, preprocess([picture], SIZE))
