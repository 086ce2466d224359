"""Reads and tokenises the records of a mixture: steps 2 and 3 of the pipeline.

A damaged record gives a message instead of examples; `packed_groups` counts it. If a record could not be read although
it may be whole, an error ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data import fingerprint, transformations
from qwenvl_jax.data.corruption import ABSENT, NOT_OF_A_RECORD
from qwenvl_jax.data.cutting import fit
from qwenvl_jax.data.examples import DrawnRecord
from qwenvl_jax.data.mixture import check_schedules
from qwenvl_jax.data.readers.source import Source, open_source
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime import retries
from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError, one_line


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

    def read(self, source: int, index: int) -> DrawnRecord:
        """Reads a record. If it is damaged, the result has a `message` and no `record`.

        Args:
          source: index of the source in the mixture.
          index: of the record in the source.

        Raises:
          StorageError: if it could not be read although it may be whole.
        """
        where = f"record {index} of source {self.data.mixture[source].name!r}"
        index = int(index)  # the shuffle of Grain gives integers of numpy
        try:
            return DrawnRecord(source, index, self._sources[source][index])
        except NOT_OF_A_RECORD:
            raise
        except (UserError, *ABSENT) as error:
            message = f"{where}: {error}"
        except OSError as error:
            kind = StorageOutage if retries.is_transient(error) else StorageError
            raise kind(f"{where} could not be read ({error}); run the same command again to continue") from None
        except BaseException as error:
            message = f"{where} is damaged ({type(error).__name__}: {one_line(error)})"
        return DrawnRecord(source, index, message=message)

    def tokenize(self, drawn: DrawnRecord) -> DrawnRecord:
        """Turns the record into examples. One that does not fit its task loses its `record` and gets a `message`."""
        if drawn.record is None:
            return drawn
        where = f"record {drawn.record_index} of source {self.data.mixture[drawn.source].name!r}"
        try:
            return fit(drawn._replace(record=None), drawn.record, self._tokenizer, self.queries, self.data)
        except NOT_OF_A_RECORD:
            raise
        except UserError as error:
            message = f"{where}: {error}"
        except BaseException as error:
            message = f"{where} is damaged ({type(error).__name__}: {one_line(error)})"
        return drawn._replace(record=None, message=message)

    def facts(self) -> dict[str, str]:
        """Everything the batches depend on; see `fingerprint.facts`."""
        return fingerprint.facts(self.data, self._sources, self._tokenizer, self.queries)


def open_mixture(config: Config, tokenizer: Tokenizer, *, split: str = "train", verify: bool = False) -> MixtureReader:
    """Opens the records of a stage; `split` and `verify` as for `source.open_source`.

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
    sources = open_sources(config.data, split, verify=verify)
    return MixtureReader(config.data, sources, tokenizer, config.model.resampler.queries)


def open_sources(data: DataConfig, split: str = "train", *, verify: bool = False) -> list[Source]:
    """Opens the records of every source (`source.open_source`).

    Raises:
      UserError: if a source cannot be opened (`source.open_source`), or a schedule is malformed.
    """
    check_schedules(data.mixture)
    shares = {"max_corrupt_share": data.max_corrupt_share, "heldout_share": data.heldout_share}
    return [open_source(source, split, verify=verify, **shares) for source in data.mixture]
