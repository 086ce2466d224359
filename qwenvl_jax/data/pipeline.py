"""The input of a stage as one composition of Grain datasets: records -> batches. Read it from top to bottom.

    for batch in pipeline(load_config("configs/stage2_multitask.py:data=/data")):
        ...

Every logical stream draws records by a selection map, reads and tokenises them, and packs them into groups of rows. The
groups of all streams make up the batches. `docs/input.md` describes each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain

from qwenvl_jax.config import Config
from qwenvl_jax.data.decoded_batches import DecodeIterDataset
from qwenvl_jax.data.packed_groups import PackIterDataset
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.stream import MixtureReader, open_mixture
from qwenvl_jax.data.tokenizer import load_tokenizer

READERS = 16  # threads of a process that read and tokenise ahead
READ_AHEAD = 16  # records of a stream


def pipeline(config: Config, *, streams: Sequence[int] | None = None, prefetch: int = 2) -> grain.IterDataset[Batch]:
    """The batches of a stage, without end: numpy arrays with a leading accumulation axis (`schema.Batch`).

    Args:
      config: of the run.
      streams: numbers of the logical streams to build, ascending; by default all, which gives the whole batch. The
        batches have the rows and images of these streams alone.
      prefetch: batches laid out ahead.

    Raises:
      UserError: if records are missing or of another task, or the tokenizer does not fit the model's vocabulary.
        While iterating: if no sample of a source fits a row, or too many samples are corrupt.
    """
    mixture = open_mixture(config, load_tokenizer(config.tokenizer))
    return batches(mixture, range(config.data.streams) if streams is None else streams, prefetch)


def batches(mixture: MixtureReader, streams: Sequence[int], prefetch: int) -> grain.IterDataset[Batch]:
    """The batches of some streams of an open mixture; see `pipeline`."""
    data = mixture.data
    # Steps 1 to 3, drawing, reading and tokenising, are `MixtureReader.stream`: random access, on threads of Grain.
    read_options = grain.ReadOptions(num_threads=max(1, READERS // len(streams)), prefetch_buffer_size=READ_AHEAD)
    groups = [PackIterDataset(mixture, number, read_options) for number in streams]  # step 4
    groups_of_step = data.accumulation * data.groups // data.streams
    parts = [each.batch(groups_of_step, batch_fn=list) for each in groups]
    ahead = [grain.experimental.ThreadPrefetchIterDataset(each, prefetch_buffer_size=1) for each in parts]
    together = grain.experimental.ZipIterDataset(ahead)
    return DecodeIterDataset(together, data, streams, mixture.queries, prefetch)  # step 5
