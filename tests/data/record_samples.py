"""Small records of every task and a way to vary a config, used by the tests of the input pipeline."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from qwenvl_jax import config as schema
from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.data.tasks import Content

SENTENCES = [
    "Generate the caption in English: a brown dog runs over the green hill.",
    "Describe the image in Chinese: 一只猫在桌子上。一条狗在山上跑。",
    "Generate the caption in English with grounding: OCR with grounding: What is this? Answer: 12 birds",
    "You are a helpful assistant. Picture 1: (661,612),(833,812) This is a red car",
] * 20


def encoded_image(seed: int, width: int = 28, height: int = 28, form: str = "PNG") -> bytes:
    """A noisy image, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    payload = io.BytesIO()
    Image.fromarray(pixels).save(payload, form)
    return payload.getvalue()


def make_record(task: str, k: int) -> Record:
    """Record `k` of a task; lengths vary with `k`."""
    size = {"width": 28, "height": 28}
    words = " ".join(["dog", "cat", "hill", "bird"][(k + j) % 4] for j in range(1 + k % 7))
    contents: dict[str, Any] = {
        "caption": {"caption": words},
        "vqa": {"question": f"How many {words}?", "answer": str(k)},
        "grounding": {
            "segments": [{"text": words, "boxes": [[1, 2, 20, 21]]}, {"text": " runs.", "boxes": []}],
            **size,
        },
        "ref_grounding": {"phrase": words, "box": [k % 10, 3, 20, 27.5], **size},
        "grounded_caption": {"box": [0, 0, 28, 28], "description": words, "ref": "This", **size},
        "ocr": {"lines": [{"text": words, "quad": [[1, 1], [9, 1], [9, 5], [1, 5]]}] * (1 + k % 2), **size},
        "text": {"text": words * (1 + k % 3)},
        "dialogue": {
            "system": "",
            "turns": [
                {"role": "user", "parts": [{"image": 0}, {"text": "What is this?"}]},
                {"role": "assistant", "parts": [{"text": words}]},
                {"role": "user", "parts": [{"image": 1}, {"text": "And this?"}]},
                {"role": "assistant", "parts": [{"ref": "A dog", "boxes": [[1, 1, 9, 9]], "image": 1}]},
            ],
            "sizes": [[28, 28], [28, 28]],
        },
        "evaluation": {
            "questions": [
                {"id": f"{k}a", "text": words, "box": [k % 10, 3, 20, 27.5]},
                {
                    "id": f"{k}b",
                    "text": "Which animal?",
                    "options": [words, "no animal"],
                    "right": 0,
                    "answers": [words],
                    "hint": "There is a hill.",
                    "category": "animals",
                    "group": str(k),
                },
            ],
            **size,
        },
    }
    count = {"text": 0, "dialogue": 2}.get(task, 1)
    images = tuple(encoded_image(1000 * TASKS.index(task) + 2 * k + j) for j in range(count))
    return Record(f"{task}{k}", task, f"{task}_source", "zh" if k % 5 == 4 else "en", "CC0-1.0", images, contents[task])


def with_content(record: Record, content: Mapping[str, Any], **changes: Any) -> Record:
    """The record with any content, right or wrong."""
    return dataclasses.replace(record, content=cast(Content, content), **changes)


def content(record: Record) -> dict[str, Any]:
    """The content without its type."""
    return cast(dict[str, Any], record.content)


def with_data(config: schema.Config, **changes: object) -> schema.Config:
    """`config` with other values under `config.data`."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))  # type: ignore[arg-type]


def mixture_of(config: schema.Config, folders: dict[str, Path], task: str, **changes: object) -> schema.Config:
    """A config whose sources are these folders, all of one task and alike in weight."""
    sources = tuple(schema.SourceConfig(name, task, str(folder), 1.0) for name, folder in folders.items())
    return with_data(config, **{"mixture": sources, "max_corrupt_share": 0.9, **changes})
