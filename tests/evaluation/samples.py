"""Pictures, records and configs that tests of evaluation share."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwenvl_jax.config import Config
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig


def noise(seed: int = 0) -> bytes:
    """A JPEG of 40 x 24 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def grey(width: int = 40, height: int = 20) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def record_of(task: str, content: Any, *, name: str = "", image: bytes = b"") -> Record:
    """A record with one picture. Its content may be wrong on purpose."""
    return Record(name or f"{task}-0", task, "tests", "en", "CC0-1.0", (image or noise(),), content)


def vqa_record(number: int, **changes: Any) -> Record:
    """Record `vqa-<number>`; lengths of questions vary with the number."""
    content = {"question": f"What is {'so ' * (number % 5)}it?", "answer": "net"}
    return record_of("vqa", content | changes, name=f"vqa-{number}", image=noise(number))


def eval_config(
    config: Config,
    checkpoint: Path,
    output: Path | str,
    task: BenchmarkConfig,
    *,
    step: int = -1,
    batch_size: int = 4,
) -> EvalConfig:
    """One checkpoint, named `a`, is asked one task."""
    return EvalConfig(
        checkpoints=(CheckpointConfig("a", str(checkpoint), 28, step),),
        tokenizer=config.tokenizer,
        benchmarks=(task,),
        batch_size=batch_size,
        prompt_style="training",
        output=str(output),
    )


def rows_of(output: Path, task: str = "vqa") -> list[dict[str, Any]]:
    """The predictions of checkpoint `a`."""
    return [json.loads(line) for line in (output / f"predictions/a/{task}.jsonl").read_text().split("\n") if line]
