"""Transformations of records that the config names: what they may do, and what their failures cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from qwenvl_jax.auditing.samples import audit
from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.batches import packed_samples
from tests.data.record_samples import content, mixture_of, with_content


class Flip(grain.transforms.RandomMap):
    """Changes captions by chance."""

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        return with_content(record, {"caption": f"{rng.integers(1000)} dogs"})


class OnlyEven(grain.transforms.Filter):
    """Keeps every second record."""

    def filter(self, record: Record) -> bool:
        return int(record.id.removeprefix("caption")) % 2 == 0


class Shout(grain.transforms.Map):
    """Fails on one record."""

    def map(self, record: Record) -> Record:
        if record.id == "caption4":
            raise KeyError("volume")
        return with_content(record, {"caption": content(record)["caption"].upper()})


class Exits(grain.transforms.Map):
    """Raises something that is no `Exception` on one record."""

    def map(self, record: Record) -> Record:
        if record.id == "caption4":
            raise SystemExit(3)
        return record


class WithoutDisk(grain.transforms.Map):
    """Cannot read a file of its own."""

    def map(self, record: Record) -> Record:
        raise OSError(5, "Input/output error")


class WithoutWords(grain.transforms.Map):
    """Raises an error that cannot even be printed."""

    def map(self, record: Record) -> Record:
        class Wordless(Exception):
            def __str__(self) -> str:
                raise ValueError

        raise Wordless


class Nothing(grain.transforms.Filter):
    """Keeps no record."""

    def filter(self, record: Record) -> bool:
        return False


class NothingOrError(grain.transforms.Filter):
    """Keeps no record, and fails on some."""

    def filter(self, record: Record) -> bool:
        if record.id == "caption4":
            raise KeyError("volume")
        return False


class Numbers(grain.transforms.Map):
    """No records."""

    def map(self, record: Record) -> int:
        return 7


NOT_A_TRANSFORMATION = 3


def transformed(config: Config, folders: Path, *names: str, **changes: Any) -> Config:
    names = tuple(f"{__name__}.{name}" for name in names)
    return mixture_of(config, {"only": folders / "caption"}, "caption", transformations=names, **changes)


def test_transformations_are_part_of_the_stream(run_config: Config, tokenizer: Tokenizer, record_folders: Path) -> None:
    """In order, the same after a restart and on any number of hosts."""
    config = transformed(run_config, record_folders, "OnlyEven", "Flip", streams=2, image_groups=2)
    with make_loader(config, tokenizer) as loader:
        batches = [next(loader) for _ in range(2)]
        state = loader.state()
        batches += [next(loader) for _ in range(3)]
        counters = loader.counters()
    texts = [tokenizer.decode(sample.tokens_L) for batch in batches for sample in packed_samples(batch)]
    assert all(" dogs" in text for text in texts)
    assert len(set(texts)) > 0.5 * len(texts)
    assert counters["filtered"]["only"] == pytest.approx(11 / 23 * counters["epochs"]["only"] * 23, abs=12)
    parts = []
    for stream in (0, 1):
        with make_loader(config, tokenizer, streams=[stream]) as loader:
            loader.restore(state)
            parts.append([next(loader).tokens for _ in range(3)])
    for number, batch in enumerate(batches[2:]):
        joined = np.concatenate([part[number] for part in parts], 1)
        np.testing.assert_array_equal(joined, batch.tokens)
    with (
        make_loader(
            transformed(run_config, record_folders, "OnlyEven", streams=2, image_groups=2), tokenizer
        ) as loader,
        pytest.raises(UserError, match=r"since then config\.data changed"),
    ):
        loader.restore(state)


def test_a_transformation_that_fails_costs_its_record(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path
) -> None:
    with make_loader(transformed(run_config, record_folders, "Shout"), tokenizer) as loader:
        while loader.counters()["epochs"]["only"] < 3:
            next(loader)
        assert loader.counters()["corrupt"]["only"] == pytest.approx(3, abs=1)
        [error] = loader.errors()
    assert f"the transformation {__name__}.Shout fails on record 'caption4' (KeyError: 'volume')" in error


def test_a_transformation_that_exits_costs_its_record(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path
) -> None:
    """In a thread, it would end the thread without a word."""
    with make_loader(transformed(run_config, record_folders, "Exits"), tokenizer) as loader:
        while loader.counters()["epochs"]["only"] < 3:
            next(loader)
        assert loader.counters()["corrupt"]["only"] == pytest.approx(3, abs=1)
        [error] = loader.errors()
    assert f"the transformation {__name__}.Exits fails on record 'caption4' (SystemExit: 3)" in error


@pytest.mark.parametrize(
    ("name", "share", "error", "message"),
    [
        ("Nothing", 0.01, UserError, "736 records of source 'only' leave no sample: .* removes 736, and 0 cannot"),
        ("NothingOrError", 0.1, UserError, r"removes 70\d, and 3\d cannot be read \(the trans.*'caption4'.*; mend"),
        ("Numbers", 1.0, UserError, "first 736 records of all sources leave no sample: .* and 736 cannot be read"),
        ("WithoutDisk", 0.01, StorageError, "run the same command again"),
        ("WithoutWords", 0.01, UserError, "are corrupt, among them .*Wordless: Wordless"),
    ],
)
def test_transformations_that_leave_no_sample_end_the_run(
    run_config: Config,
    tokenizer: Tokenizer,
    record_folders: Path,
    name: str,
    share: float,
    error: type[Exception],
    message: str,
) -> None:
    config = transformed(run_config, record_folders, name, max_corrupt_share=share)
    with make_loader(config, tokenizer) as loader, pytest.raises(error, match=message):
        next(loader)


def test_a_transformation_that_gives_something_else_ends_the_run(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path
) -> None:
    config = transformed(run_config, record_folders, "Numbers", max_corrupt_share=0.01)
    with make_loader(config, tokenizer) as loader, pytest.raises(UserError, match="it gives int instead of a Record"):
        next(loader)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", "cannot be loaded .AttributeError"),
        ("NOT_A_TRANSFORMATION", "is no Map, RandomMap or Filter"),
    ],
)
def test_a_transformation_must_be_one_of_grain(
    run_config: Config, tokenizer: Tokenizer, record_folders: Path, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_loader(transformed(run_config, record_folders, name), tokenizer)


def test_the_audit_says_so_if_transformations_remove_everything(run_config: Config, record_folders: Path) -> None:
    notes = audit(transformed(run_config, record_folders, "Nothing"), 50, 1).numbers["notes"]
    assert notes[0] == "config.data.transformations removes every record of source 'only' that was drawn"
