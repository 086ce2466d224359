"""How long a stage takes to its first batch when it continues from step 100,000 on 1, 2, 4 and 8 hosts, and the size
of its position in the data.

Usage: python benchmarks/input_resume.py      (no accelerator; a minute)

The position is made by letting every stream run for a few batches and then moving it on to where 100,000 steps would
have brought it: the state of a stream has the same form and size at any step. Hosts take turns in one process; their
parts together must be the batch of one host, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from input import CAPTION, paths_in, write_photos

from configs import stage2_multitask
from qwenvl_jax.config import Config, SourceConfig, TokenizerConfig, load_config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer

STEP, STREAMS = 100_000, 8


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        write_photos(folder, 200)
        tasks = {"caption": {"caption": CAPTION}, "vqa": {"question": CAPTION + "?", "answer": "yes"}}
        for task, fields in tasks.items():
            lines = [json.dumps({"image": path, **fields}) for path in paths_in(made)]
            (folder / f"{task}.jsonl").write_text("\n".join(lines))
        config = load_config(stage2_multitask.get_config())
        data = dataclasses.replace(
            config.data,
            mixture=tuple(SourceConfig(task, task, f"{folder}/{task}.jsonl", 1.0) for task in tasks),
            rows_per_step=8 * STREAMS,
            accumulation=1,
            images_per_row=7.0,
            image_groups=STREAMS,
            streams=STREAMS,
        )
        config, tokenizer = dataclasses.replace(config, data=data), load_tokenizer(TokenizerConfig("qwen", ""))
        with make_loader(config, tokenizer) as loader:
            for _ in range(2):
                next(loader)
            state = loader.state()
        for stream in state["streams"].values():
            stream["next"] += (STEP - 2) * stream["next"] // 2
        size = len(json.dumps(state["streams"]["0"]))
        print(f"{STREAMS} streams of {size / 1000:.1f} kB")
        whole = None
        for hosts in (1, 2, 4, 8):
            each = STREAMS // hosts
            parts = [
                first_batch(config, tokenizer, state, range(first, first + each)) for first in range(0, STREAMS, each)
            ]
            batch = [np.concatenate(arrays, 1) for arrays in zip(*(part.batch for part in parts), strict=True)]
            whole = whole or batch
            equal = all(np.array_equal(a, b) for a, b in zip(batch, whole, strict=True))
            restored = max(part.restored for part in parts)
            seconds = max(part.seconds for part in parts)
            images = int(parts[0].batch.images.any((2, 3, 4)).sum())
            print(
                f"{hosts} hosts: opened and restored in {restored:.2f} s, the first batch of {images} images after "
                f"{seconds:.2f} s; {'equal' if equal else 'DIFFERENT'}",
                flush=True,
            )


class First(NamedTuple):
    """The first batch of a host, and the seconds until its streams were restored and until it came."""

    batch: Batch
    restored: float
    seconds: float


def first_batch(config: Config, tokenizer: Tokenizer, state: dict[str, Any], streams: Sequence[int]) -> First:
    start = time.perf_counter()
    with make_loader(config, tokenizer, streams=streams) as loader:
        loader.restore(state)
        restored = time.perf_counter() - start
        batch = next(loader)
        return First(batch, restored, time.perf_counter() - start)


if __name__ == "__main__":
    main()
