"""How long a stage takes to its first batch when it continues from step 100,000, and the size of its place in the data.

Usage: python benchmarks/input_resume.py      (no accelerator; half a minute)

A stream's place is made by letting it run for a few batches and then moving every source on to where 100,000 steps
would have brought it: the state of a stream has the same form and size at any step.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
import time

from input import CAPTION, paths_in, write_photos

from configs import stage2_multitask
from qwenvl_jax.config import SourceConfig, TokenizerConfig, load_config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import load_tokenizer

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
        for own in state["streams"].values():
            own["sampler"]["drawn"] = [count * STEP // 2 for count in own["sampler"]["drawn"]]
            own["step"] = STEP
        size = len(json.dumps(state["streams"]["0"]))
        start = time.perf_counter()
        with make_loader(config, tokenizer) as loader:
            loader.restore(state)
            restored = time.perf_counter()
            batch = next(loader)
            seconds = time.perf_counter()
        print(
            f"{STREAMS} streams of {size / 1000:.1f} kB: opened and restored in {restored - start:.2f} s, the first "
            f"batch of {int(batch.images.any((2, 3, 4)).sum())} images after {seconds - start:.2f} s"
        )


if __name__ == "__main__":
    main()
