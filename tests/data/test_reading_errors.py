"""Errors and Ctrl-C while records are read: no other data comes afterwards."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import Loader
from qwenvl_jax.data.mixture_reader import MixtureReader
from qwenvl_jax.data.pipeline import batches as batches_of
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Batch, Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError
from tests.data.batches import QUERIES, assert_equal, take
from tests.data.record_samples import mixture_of


class Interrupted:
    """Records of which one cannot be read once."""

    def __init__(self, folder: Path):
        self._reader = RecordReader(folder)
        self.samples = len(self._reader)
        self.fails = True

    def __len__(self) -> int:
        return len(self._reader)

    def digest(self) -> str:
        return self._reader.digest()

    def findings(self) -> Any:
        return self._reader.findings()

    def __getitem__(self, index: int) -> Record:
        if index == 11 and self.fails:
            self.fails = False
            raise OSError(5, "Input/output error")
        return self._reader[index]


def test_after_a_failed_read_there_is_no_other_data(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path
) -> None:
    """Grain would go on with the next record, silently. The same command continues with the right one."""
    config = mixture_of(run_config, {"only": record_folders / "caption"}, "caption")
    expected = take(config, tokenizer, 12)
    source = Interrupted(record_folders / "caption")
    mixture = MixtureReader(config.data, [source], tokenizer, QUERIES)
    with Loader(mixture, [0], 1) as loader:
        states = [loader.state()]
        batches = []
        with pytest.raises(StorageError, match="record 11 of source 'only' could not be read"):
            for _ in range(12):
                batches.append(next(loader))
                states.append(loader.state())
        for _ in range(2):
            with pytest.raises(StorageError, match="record 11"):
                next(loader)
        loader.restore(states[-1])
        batches += [next(loader) for _ in range(12 - len(batches))]
    assert_equal(batches, expected)


def test_after_an_error_the_pipeline_itself_gives_no_other_data(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path
) -> None:
    config = mixture_of(run_config, {"only": record_folders / "caption"}, "caption")
    mixture = MixtureReader(config.data, [Interrupted(record_folders / "caption")], tokenizer, QUERIES)
    iterator = batches_of(mixture, [0], 1).__iter__()
    for _ in range(3):
        with pytest.raises(StorageError, match="record 11"):
            for _ in range(12):
                next(iterator)
    iterator.set_state(iterator.get_state())
    assert_equal([next(iterator)], take(config, tokenizer, 1))
    iterator.close()


class InterruptedOnce(Interrupted):
    """Records of which one is waited for until Ctrl-C is pressed, unless it is the first time that it is read."""

    def __init__(self, folder: Path, passes: int):
        super().__init__(folder)
        self._passes = passes

    def __getitem__(self, index: int) -> Record:
        if index == 11:
            self._passes -= 1
            if self._passes == 0:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
        return self._reader[index]


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_after_ctrl_c_iterating_goes_on_with_the_same_batches(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path, passes: int
) -> None:
    """As in a notebook, whichever stream it waited for."""
    config = mixture_of(
        run_config, {"only": record_folders / "caption"}, "caption", rows_per_step=8, image_groups=2, streams=2
    )
    expected = take(config, tokenizer, 12)
    source = InterruptedOnce(record_folders / "caption", passes)
    batches: list[Batch] = []
    interrupts = 0
    with Loader(MixtureReader(config.data, [source], tokenizer, QUERIES), [0, 1], 1) as loader:
        while len(batches) < 12:
            try:
                batches.append(next(loader))
            except KeyboardInterrupt:
                interrupts += 1
    assert_equal(batches, expected)
    assert interrupts == 1
