"""The training step, compiled on a thread while the main thread reads or initialises the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime import log
from qwenvl_jax.training.state import State
from qwenvl_jax.training.step import TrainStep


@contextlib.contextmanager
def compiled_ahead(step: TrainStep, state: State, batch: Batch, *, wanted: bool) -> Iterator[Future[None] | None]:
    """Compiles a step while the block runs; gives what the first step waits for.

    It gives None on GPUs, whose compiler times kernels on them and must find them idle. A process cannot end while the
    compiler is at work, so the end of the block waits for it, also after an error.

    Args:
      step: from `make_train_step`.
      state: shapes and shardings, from `abstract_state`.
      batch: shapes and shardings, from `abstract_batch`.
      wanted: whether a step will be taken; otherwise nothing is compiled, and it gives None.
    """
    if not wanted or jax.default_backend() == "gpu":
        yield None
        return
    with ThreadPoolExecutor(1, "compilation") as thread:
        compilation = thread.submit(step.compile_ahead, state, batch)
        try:
            yield compilation
        except BaseException:
            if not compilation.done():
                log.line("the process ends as soon as the compiler is done with the step")
            raise
