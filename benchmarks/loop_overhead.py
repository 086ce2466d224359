"""The training loop against the bare jitted step, alternated in one process.

    python benchmarks/loop_overhead.py [--rounds=5] [--steps=120] [--layers=12]

    bare      the jitted step of the same config on one batch, handed out one step ahead of the devices
    loop      `training.loop.train`: data, metrics, log lines, ledger; evaluation off (`config.evaluation.every=0`)
    absent    the same loop with the lines about evaluation cut out of its source

Seconds per step of the median window of 20 steps, without the first two windows and without checkpoints. Target: the
loop takes at most 1 % longer than the bare step. On a machine with few cores, reading data competes with the step. What
the loop adds to a step does not depend on the model: with few layers the difference in milliseconds is seen best.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import small_stage

from qwenvl_jax.config import Config, load_config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import split
from qwenvl_jax.runtime import compilation_cache
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training import loop
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state, shardings_of
from qwenvl_jax.training.step import make_train_step

WINDOW, WARM = 20, 2  # steps of a window; windows that do not count


def bare(config: Config) -> list[float]:
    """Seconds per step of every window."""
    mesh = make_mesh(config.mesh)
    abstract = abstract_state(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)

    def begin(key: jax.Array) -> State:
        trainable, frozen = split(qwen_vl.init_params(config.model, key), config.train.trainable)
        return State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))

    state = jax.jit(begin, out_shardings=shardings_of(abstract))(jax.random.key(0))
    with make_loader(config, load_tokenizer(config.tokenizer)) as loader:
        batch = put_batch(next(loader), config.data, mesh)
    train_step = make_train_step(config, mesh, abstract)
    seconds = []
    before = None
    for _ in range(config.train.steps // WINDOW):
        began = time.perf_counter()
        for _ in range(WINDOW):
            state, metrics = train_step(state, batch)
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / WINDOW)
    return seconds


def looped(train: Callable[..., int], config: Config) -> list[float]:
    """As `bare`, of a training loop."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["timing"]["seconds_per_step"] for line in lines]


def loop_without_evaluation() -> Callable[..., int]:
    """`loop.train` without the statements that concern observers."""
    source = inspect.getsource(loop.train)
    source, made = re.subn(r"\n +\w+ = make_observers\([^\n]*\)", "", source)
    source, asked = re.subn(r"\n( +evaluated) = [^\n]*", r"\n\1 = False", source)
    source, called = re.subn(r"\n +if evaluate[^\n]*:\n +evaluate\([^\n]*\)", "", source)
    assert (made, asked, called) == (1, 1, 2), "the loop has changed; adapt this benchmark"
    names = dict(vars(loop))
    exec(compile(source, "loop without evaluation", "exec"), names)
    return names["train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--layers", type=int, default=small_stage.LAYERS, help="Of the decoder.")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"bare": [], "loop": [], "absent": []}
    absent = loop_without_evaluation()
    with tempfile.TemporaryDirectory() as folder:
        small_stage.write_data(pathlib.Path(folder))
        compilation_cache.use(f"{folder}/cache", folder)
        settings = small_stage.get_config(folder)
        settings.model.decoder.layers = arguments.layers
        config = load_config(settings)
        train = dataclasses.replace(
            config.train, steps=arguments.steps, log_every=WINDOW, checkpoint_every=arguments.steps
        )
        config = dataclasses.replace(config, train=train)
        for _ in range(arguments.rounds):
            seconds["bare"] += bare(config)[WARM:]
            seconds["loop"] += looped(loop.train, config)[WARM:]
            seconds["absent"] += looped(absent, config)[WARM:]
    median = {side: statistics.median(values) for side, values in seconds.items()}
    for side, value in median.items():
        print(f"{side:8} median {1000 * value:8.3f} ms, best {1000 * min(seconds[side]):8.3f} ms per step")
    for title, side in (("loop over bare step", "bare"), ("evaluation off over absent", "absent")):
        added = median["loop"] - median[side]
        print(f"{title}: {added / median[side]:+.2%}, {1000 * added:+.3f} ms per step")


if __name__ == "__main__":
    main()
