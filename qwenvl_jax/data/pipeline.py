"""The input of a stage as one composition of Grain datasets: records -> batches. Read it from top to bottom.

    for batch in pipeline(load_config("configs/stage2_multitask.py:data=/data")):
        ...

Every logical stream draws records by a selection map, reads and tokenises them, and packs them into groups of rows. The
groups of all streams make up the batches. `docs/input.md` describes each step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import grain

from qwenvl_jax.config import Config
from qwenvl_jax.data import transformations
from qwenvl_jax.data.decoded_batches import DecodeIterDataset
from qwenvl_jax.data.examples import DrawnRecord
from qwenvl_jax.data.mixture import MixtureSelectionMap, source_seed
from qwenvl_jax.data.mixture_reader import MixtureReader, open_mixture
from qwenvl_jax.data.packed_groups import PackIterDataset
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import load_tokenizer

READERS = 16  # threads of a process that read and tokenise ahead
READ_AHEAD = 16  # records of a stream that are read ahead


def pipeline(config: Config, *, streams: Sequence[int] | None = None, prefetch: int = 2) -> grain.IterDataset[Batch]:
    """The batches of a stage, without end: numpy arrays with a leading accumulation axis (`schema.Batch`).

    Args:
      config: of the run.
      streams: indices of the logical streams to build, ascending; by default all, which gives the whole batch. The
        batches have the rows and images of these streams alone.
      prefetch: batches laid out ahead.

    Raises:
      UserError: if records are missing or of another task, or the tokenizer does not fit the model's vocabulary.
        While iterating: if no sample of a source fits a row, or too many samples are corrupt.
      StorageError: while iterating, if a record cannot be read although it may be whole.
    """
    reader = open_mixture(config, load_tokenizer(config.tokenizer))
    return batches(reader, range(config.data.streams) if streams is None else streams, prefetch)


def batches(reader: MixtureReader, streams: Sequence[int], prefetch: int) -> grain.IterDataset[Batch]:
    """The batches of some streams of an open mixture; see `pipeline`."""
    data = reader.data
    # Every stream has threads of its own.
    read_options = grain.ReadOptions(num_threads=max(1, READERS // len(streams)), prefetch_buffer_size=READ_AHEAD)
    groups_per_batch = data.accumulation * data.groups // data.streams  # of one stream
    groups_by_stream = []
    for stream in streams:
        records = drawn_records(reader, stream)  # steps 1 to 3, with random access
        groups = PackIterDataset(reader, records, read_options).batch(groups_per_batch, batch_fn=list)  # step 4
        # Zip asks one stream after the other, so each works ahead on a thread.
        groups_by_stream.append(grain.experimental.ThreadPrefetchIterDataset(groups, prefetch_buffer_size=1))
    together = grain.experimental.ZipIterDataset(groups_by_stream)
    return DecodeIterDataset(together, data, streams, reader.queries, prefetch)  # step 5


def drawn_records(reader: MixtureReader, stream: int) -> grain.MapDataset[DrawnRecord]:
    """The records that a logical stream draws, read and tokenised, without end: a pure function of the position.

    Args:
      reader: of the mixture.
      stream: index of the stream.
    """
    data = reader.data
    # The sources are sliced, not the mixture: a slice of the mixture would not have the shares of its sources.
    by_source = [
        grain.MapDataset.range(records)
        .shuffle(seed=source_seed(data.seed, source.name))
        .repeat()[stream :: data.streams]
        .map(functools.partial(reader.read, index))  # step 2
        for index, (source, records) in enumerate(zip(data.mixture, reader.records, strict=True))
    ]
    samples_per_record = [samples / records for samples, records in zip(reader.samples, reader.records, strict=True)]
    selection = MixtureSelectionMap(data.mixture, samples_per_record, data.seed, stream, data.streams)
    drawn = grain.MapDataset.select_from_datasets(by_source, selection)  # step 1
    for name in data.transformations:
        drawn = transformations.apply(drawn, name, source_seed(data.seed, f"{name}/{stream}"))
    return drawn.map(reader.tokenize)  # step 3
