"""The records of a mixture, and the logical streams that read them.

A stage has `config.data.streams` streams, each with an equal part of the rows of every microbatch. A stream depends on
config.data, the tokenizer, the records, the queries per image and its number alone, so it does not matter which process
builds it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import grain

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data import fingerprint, transformations
from qwenvl_jax.data.cutting import fit
from qwenvl_jax.data.examples import Drawn
from qwenvl_jax.data.mixture import Mixture, open_sources, source_seed
from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

# Errors that mean that a file is missing, not that a disk or a server does not answer.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class MixtureReader:
    """The records of a mixture as examples. Reads from several threads at once.

    Args:
      data: the config.
      sources: the records of each entry of `data.mixture`, in order.
      tokenizer: of the run.
      queries: feature slots per image.

    Attributes:
      records: how many each source has.
      samples: how many samples these records have.
    """

    def __init__(self, data: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer, queries: int):
        self.data = data
        self.queries = queries
        self.records = [len(source) for source in sources]
        self.samples = [source.samples for source in sources]
        self._sources = sources
        self._tokenizer = tokenizer

    def stream(self, number: int) -> grain.MapDataset[Drawn]:
        """Everything that a logical stream draws, in order and without end: a pure function of the position."""
        data = self.data
        orders = [
            grain.MapDataset.range(records)
            .shuffle(seed=source_seed(data.seed, source.name))
            .repeat()[number :: data.streams]
            .map(functools.partial(self.read, index))
            for index, (source, records) in enumerate(zip(data.mixture, self.records, strict=True))
        ]
        per_record = [samples / records for samples, records in zip(self.samples, self.records, strict=True)]
        mixture = Mixture(data.mixture, per_record, data.seed, number, data.streams)
        drawn = grain.MapDataset.select_from_datasets(orders, mixture)
        for name in data.transformations:
            drawn = transformations.apply(drawn, name, source_seed(data.seed, f"{name}/{number}"))
        return drawn.map(self.tokenize)

    def read(self, source: int, number: int) -> Drawn:
        """Reads record `number` of a source of the mixture. A record that is damaged has no `record`, but a `message`.

        Raises:
          StorageError: if it could not be read although it may be whole.
        """
        where = f"record {number} of source {self.data.mixture[source].name!r}"
        number = int(number)  # grain shuffles to numpy's integers
        try:
            return Drawn(source, number, self._sources[source][number])
        except (MemoryError, StorageError):
            raise
        except (UserError, *_ABSENT) as error:
            message = f"{where}: {error}"
        except OSError as error:
            raise StorageError(f"{where} could not be read ({error}); run the same command again to continue") from None
        except Exception as error:
            message = f"{where} is damaged ({type(error).__name__}: {one_line(error)})"
        return Drawn(source, number, message=message)

    def tokenize(self, drawn: Drawn) -> Drawn:
        """Turns the record into examples. One that does not fit its task loses its `record` and gets a `message`."""
        if drawn.record is None:
            return drawn
        where = f"record {drawn.number} of source {self.data.mixture[drawn.source].name!r}"
        try:
            return fit(drawn._replace(record=None), drawn.record, self._tokenizer, self.queries, self.data)
        except MemoryError:
            raise
        except UserError as error:
            message = f"{where}: {error}"
        except Exception as error:
            message = f"{where} is damaged ({type(error).__name__}: {one_line(error)})"
        return drawn._replace(record=None, message=message)

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on; see `fingerprint.facts`."""
        return fingerprint.facts(self.data, self._sources, self._tokenizer, self.queries)


def open_mixture(config: Config, tokenizer: Tokenizer, *, verify: bool = False) -> MixtureReader:
    """Opens the records of a stage; `verify` as for `source.open_source`.

    Raises:
      UserError: if records are missing or of another task, a transformation cannot be loaded, or the tokenizer does
        not fit the model's vocabulary.
    """
    rows = config.model.decoder.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer uses {tokenizer.vocab_size} ids, but config.model.decoder.vocab_size is {rows}; choose a "
            "smaller vocabulary or a larger model vocabulary"
        )
    for name in config.data.transformations:
        transformations.load_transformation(name)
    sources = open_sources(config.data, verify=verify)
    return MixtureReader(config.data, sources, tokenizer, config.model.resampler.queries)
