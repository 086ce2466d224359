"""Packed, ready batches per second, compared with bare decoding and resizing of the same files, PyTorch and tf.data.

Usage: python benchmarks/input.py [--images=FOLDER] [--seconds=20] [--rounds=3] [--size=448]   (no accelerator)
       The loader uses numba and simplejpeg if they are installed (requirements-test.txt); tensorflow-cpu adds the
       peer tf.data, opencv-python-headless the aliased form of PyTorch's.

Every side reads the same JPEG files with a caption each, on as many processes as there are cores. `bare` decodes and
resizes with Pillow and does nothing else. The loader packs rows of 2,048 tokens; the peers decode, resize and tokenise
without packing. All give the pixels of Pillow's antialiased bicubic but the peers called `own`, which decode and resize
with what their library has fastest for an antialiased bicubic, and those called `aliased`, which leave that out. Sides
take turns, each in processes of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

from configs import stage2_multitask
from qwenvl_jax.config import SourceConfig, TokenizerConfig, load_config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import load_tokenizer

CORES = os.cpu_count() or 1
CAPTION = "a brown dog runs over the green hill beside the river, and a cat looks at it from the roof of a house"
BATCH = 64  # images per batch of the peers


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise with the spectrum of photographs (amplitude about 1 / frequency), so that a JPEG of it has their size."""
    noise = np.fft.rfft2(rng.normal(size=(3, height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    picture = np.fft.irfft2(noise / frequency**1.2, s=(height, width))
    picture = (picture - picture.mean()) / picture.std() * 50 + 128
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def write_photos(folder: pathlib.Path, count: int) -> None:
    """Writes JPEGs of 640 x 480 pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        photo(rng, 640, 480).save(folder / f"{number:05}.jpg", "JPEG", quality=90)


def paths_in(folder: str) -> list[str]:
    return sorted(str(path) for path in pathlib.Path(folder).iterdir() if path.suffix in (".jpg", ".jpeg"))


class Rate(NamedTuple):
    """Images per second, and seconds of processor time per image."""

    images: float
    processor: float


def rate(images: Iterator[int], seconds: float) -> Rate:
    """The rate of this process and its children, once the first images have come."""
    next(images)
    next(images)
    start, before, seen = time.perf_counter(), processor_seconds(), 0
    for count in images:
        seen += count
        if (now := time.perf_counter()) - start > seconds:
            return Rate(seen / (now - start), (processor_seconds() - before) / seen)
    raise AssertionError("the side ended")


def processor_seconds() -> float:
    """Processor time of this process and of its children that run."""
    process = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def pillow_pixels(payload: bytes, size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _bare_process(paths: list[str], size: int, seconds: float) -> Rate:
    def images() -> Iterator[int]:
        while True:
            for path in paths:
                pillow_pixels(pathlib.Path(path).read_bytes(), size)
                yield 1

    return rate(images(), seconds)


def bare(folder: str, size: int, seconds: float) -> Rate:
    """Reading, decoding and resizing on every core, the limit of what Pillow allows."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        rates = pool.starmap(_bare_process, [(paths_in(folder), size, seconds)] * CORES)
    return Rate(sum(each.images for each in rates), statistics.mean(each.processor for each in rates))


def loader(folder: str, size: int, seconds: float) -> Rate:
    """Ready batches of this code."""
    source = SourceConfig("photos", "caption", f"{folder}/captions.jsonl", 1.0)
    config = load_config(stage2_multitask.get_config())
    data = dataclasses.replace(
        config.data,
        mixture=(source,),
        image_size=size,
        rows_per_step=16,
        accumulation=1,
        images_per_row=7.0,
        image_groups=2,
        streams=2,
        decode_workers=CORES,
    )
    config = dataclasses.replace(config, data=data)
    with make_loader(config, load_tokenizer(TokenizerConfig("qwen", ""))) as batches:

        def images() -> Iterator[int]:
            before = 0
            for _ in batches:
                now = batches.counters()["images"]
                yield now - before
                before = now

        return rate(images(), seconds)


def _torch(folder: str, size: int, seconds: float, pixels: Callable[[bytes, int], Any]) -> Rate:
    import torch

    tokenizer = load_tokenizer(TokenizerConfig("qwen", ""))

    class Photos(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[Any, Any]]:
            while True:
                for path in paths_in(folder):
                    ids = torch.zeros(64, dtype=torch.int32)
                    encoded = torch.from_numpy(tokenizer.encode_array(CAPTION).copy())
                    ids[: len(encoded)] = encoded
                    yield torch.as_tensor(pixels(pathlib.Path(path).read_bytes(), size)), ids

    batches = torch.utils.data.DataLoader(Photos(), batch_size=BATCH, num_workers=CORES, prefetch_factor=2)
    return rate((len(ids) for _, ids in batches), seconds)


def torch_exact(folder: str, size: int, seconds: float) -> Rate:
    return _torch(folder, size, seconds, lambda payload, size: pillow_pixels(payload, size).copy())


def torch_own(folder: str, size: int, seconds: float) -> Rate:
    """simplejpeg and PyTorch's antialiased bicubic for bytes."""
    import simplejpeg
    import torch

    torch.set_num_threads(1)

    def pixels(payload: bytes, size: int) -> Any:
        image_CHW = torch.from_numpy(simplejpeg.decode_jpeg(payload)).permute(2, 0, 1)
        resized = torch.nn.functional.interpolate(image_CHW[None], (size, size), mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0)

    return _torch(folder, size, seconds, pixels)


def torch_aliased(folder: str, size: int, seconds: float) -> Rate:
    """simplejpeg and OpenCV's bicubic, which is not antialiased."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)

    def pixels(payload: bytes, size: int) -> np.ndarray:
        return cv2.resize(simplejpeg.decode_jpeg(payload), (size, size), interpolation=cv2.INTER_CUBIC)

    return _torch(folder, size, seconds, pixels)


def _tf(folder: str, size: int, seconds: float, exact: bool, antialias: bool = True) -> Rate:
    import tensorflow as tf

    tokenizer = load_tokenizer(TokenizerConfig("qwen", ""))

    def pixels(path: Any) -> Any:
        payload = tf.io.read_file(path)
        if exact:
            return tf.ensure_shape(
                tf.numpy_function(lambda p: pillow_pixels(p, size), [payload], tf.uint8), (size, size, 3)
            )
        image = tf.io.decode_jpeg(payload, 3, dct_method="INTEGER_FAST")
        image = tf.image.resize(image, (size, size), "bicubic", antialias=antialias)
        return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)

    def tokens() -> Any:
        ids = np.zeros(64, np.int32)
        encoded = tokenizer.encode_array(CAPTION)
        ids[: len(encoded)] = encoded
        return ids

    files = tf.data.Dataset.from_tensor_slices(paths_in(folder)).repeat()
    examples = files.map(
        lambda path: (pixels(path), tf.numpy_function(tokens, [], tf.int32)), num_parallel_calls=tf.data.AUTOTUNE
    )
    batches = examples.batch(BATCH).prefetch(2)
    return rate((len(ids) for _, ids in batches.as_numpy_iterator()), seconds)


def tf_exact(folder: str, size: int, seconds: float) -> Rate:
    return _tf(folder, size, seconds, True)


def tf_own(folder: str, size: int, seconds: float) -> Rate:
    return _tf(folder, size, seconds, False)


def tf_aliased(folder: str, size: int, seconds: float) -> Rate:
    return _tf(folder, size, seconds, False, antialias=False)


SIDES: dict[str, tuple[Callable[[str, int, float], Rate], tuple[str, ...]]] = {
    "bare": (bare, ()),
    "loader": (loader, ()),
    "DataLoader": (torch_exact, ("torch",)),
    "tf.data": (tf_exact, ("tensorflow",)),
    "DataLoader, own": (torch_own, ("torch", "simplejpeg")),
    "tf.data, own": (tf_own, ("tensorflow",)),
    "DataLoader, aliased": (torch_aliased, ("torch", "cv2", "simplejpeg")),
    "tf.data, aliased": (tf_aliased, ("tensorflow",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of JPEG files; default 600 of noise like photographs")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(*SIDES[arguments.side][0](arguments.images, arguments.size, arguments.seconds))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        if arguments.images:
            for path in paths_in(arguments.images):
                (folder / pathlib.Path(path).name).symlink_to(path)
        else:
            write_photos(folder, 600)
        lines = [json.dumps({"image": path, "caption": CAPTION}) for path in paths_in(made)]
        (folder / "captions.jsonl").write_text("\n".join(lines))
        rates: dict[str, list[Rate]] = {}
        for _ in range(arguments.rounds):
            for side, (_, modules) in SIDES.items():
                if any(importlib.util.find_spec(module) is None for module in modules):
                    continue
                command = [sys.executable, __file__, f"--side={side}", f"--images={folder}"]
                command += [f"--seconds={arguments.seconds}", f"--size={arguments.size}"]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                last = Rate(*map(float, done.stdout.split()[-2:]))
                rates.setdefault(side, []).append(last)
                print(f"{side:20} {last.images:7.1f} images/s {1000 * last.processor:6.2f} ms", flush=True)
    print(
        f"\n{'':20} images/s/core, best and median of {arguments.rounds}, median / bare; processor ms per image, median"
    )
    limit = statistics.median(each.images for each in rates["bare"])
    for side, values in rates.items():
        images = [each.images for each in values]
        middle = statistics.median(images)
        processor = 1000 * statistics.median(each.processor for each in values)
        print(f"{side:20} {max(images) / CORES:7.1f} {middle / CORES:7.1f} {middle / limit:7.2f} {processor:7.2f}")


if __name__ == "__main__":
    main()
