"""Tiny records and configs for tests that train."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from qwenvl_jax.config import Config, load_config
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Batch, Record
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from tests.support import tiny_config

NO_DATA = Path("unused")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def _picture(colour: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    pixels = np.clip(np.asarray(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_data(folder: Path, count: int = 60) -> Path:
    """Writes record folders `caption`, `vqa`, `text` and the vocabulary `tiny.model`; returns `folder`."""
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    records: dict[str, list[Record]] = {"caption": [], "vqa": [], "text": []}
    texts: list[str] = []
    for index in range(count):
        name = names[index % len(names)]
        image = (_picture(COLOURS[name], rng),)
        contents: dict[str, dict[str, Any]] = {
            "caption": {"caption": f"a {name} square number {index}", "width": 16, "height": 16},
            "vqa": {"question": "What colour is it?", "answer": name, "width": 16, "height": 16},
            "text": {"text": f"{name} things are {name}, and {index} is a number"},
        }
        for task, content in contents.items():
            images = () if task == "text" else image
            records[task].append(
                Record(f"{task}-{index}", task, "tests", "en", "CC0-1.0", images, cast(Content, content))
            )
            texts += [value for value in content.values() if isinstance(value, str)]
    for task, items in records.items():
        write_records(folder / task, {"train": items}, name=f"tiny_{task}")
    train_sentencepiece([*texts, "Generate the caption in English: Answer:"], 420, folder / "tiny.model")
    return folder


def make_config(folder: Path = NO_DATA, **changes: Any) -> Config:
    """The tiny config.

    Args:
      folder: of the records, from `write_data`; not needed by what reads none.
      changes: values of keys, e.g. `optimizer__clip_norm=0.5` for `config.optimizer.clip_norm`.
    """
    values = tiny_config.get_config(str(folder))
    with values.unlocked():
        for key, value in changes.items():
            group, _, name = key.partition("__")
            values[group][name] = value
        if values.data.images_per_row == 0:  # as in stages of text
            values.data.mixture = tuple(source for source in values.data.mixture if source["task"] == "text")
    return load_config(values)


def random_batch(config: Config, seed: int = 0) -> Batch:
    """A batch of noise in the shapes of `config`: rows of two samples, each with an image if there are any."""
    data, queries = config.data, config.model.resampler.queries
    rng = np.random.default_rng(seed)
    shape = (data.accumulation, data.rows_per_microbatch, data.sequence_length)
    half = data.sequence_length // 2
    tokens = rng.integers(0, config.model.decoder.vocab_size, shape).astype(np.int32)
    segments = np.ones(shape, np.int32)
    segments[..., half:] = 2
    segments[..., -3:] = 0
    positions = np.broadcast_to(np.arange(data.sequence_length) % half, shape).astype(np.int32)
    slots = np.full(shape, -1, np.int32)
    images = np.zeros((data.accumulation, data.image_budget, data.image_size, data.image_size, 3), np.uint8)
    if data.images_per_row:
        for image in range(2 * data.rows_per_microbatch):
            row, start = image // 2, 1 + (image % 2) * half
            group, in_group = row // data.group_rows, image % (2 * data.group_rows)
            if in_group < data.group_images:
                index = group * data.group_images + in_group
                images[:, index] = rng.integers(0, 256, (data.accumulation, *images.shape[2:]))
                slots[:, row, start : start + queries] = in_group * queries + np.arange(queries)
    mask = (rng.random(shape) < 0.6) & (segments > 0) & (slots < 0)
    targets = np.roll(tokens, -1, axis=-1)
    of_samples = rng.integers(0, len(data.mixture), (*shape[:2], 2))
    sources = np.where(segments > 0, np.repeat(of_samples, [half, shape[2] - half], axis=-1), 0).astype(np.int32)
    return Batch(tokens, targets, mask.astype(np.float32), segments, positions, slots, sources, images)


def regroup(batch: Batch, queries: int) -> Batch:
    """The same batch, of one image group, with all microbatches as one."""
    joined = [field.reshape(1, -1, *field.shape[2:]) for field in batch]
    slots, budget = batch.image_slot, batch.images.shape[1]
    offset = (np.arange(slots.shape[0]) * budget * queries)[:, None, None]
    slots = np.where(slots >= 0, slots + offset, -1).astype(np.int32)
    return Batch(*joined)._replace(image_slot=slots.reshape(joined[0].shape))
