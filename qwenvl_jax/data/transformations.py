"""Transformations of records that the config names: augmentation and filtering, between reading and tokenising."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from qwenvl_jax.data.corruption import ABSENT, NOT_OF_A_RECORD
from qwenvl_jax.data.examples import DrawnRecord
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

_KINDS = (grain.transforms.Map, grain.transforms.RandomMap, grain.transforms.Filter)


def load_transformation(name: str) -> Any:
    """A transformation of Grain by its dotted name.

    Args:
      name: of a class that is called without arguments, or of an object, e.g. "my_project.augmentation.Flip".

    Raises:
      UserError: if there is no such name, or it is no `Map`, `RandomMap` or `Filter` of `grain.transforms`.
    """
    module, _, attribute = name.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
        loaded = loaded() if isinstance(loaded, type) else loaded
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"config.data.transformations names {name!r}, which cannot be loaded ({type(error).__name__}: "
            f"{one_line(error)}); give the dotted name of an importable class or object"
        ) from None
    if not isinstance(loaded, _KINDS):
        raise UserError(
            f"config.data.transformations names {name!r}, which is no Map, RandomMap or Filter of grain.transforms"
        )
    return loaded


def apply(samples: grain.MapDataset[DrawnRecord], name: str, seed: int) -> grain.MapDataset[DrawnRecord]:
    """Applies a transformation to the records of a dataset.

    A record on which it fails is counted like one that cannot be read.

    Args:
      samples: drawn and read.
      name: see `load_transformation`.
      seed: of a RandomMap.
    """
    transformation = load_transformation(name)
    if isinstance(transformation, grain.transforms.Filter):
        return samples.map(lambda drawn: _kept(drawn, transformation.filter, name))
    if isinstance(transformation, grain.transforms.RandomMap):
        return samples.random_map(
            lambda drawn, rng: _mapped(drawn, lambda record: transformation.random_map(record, rng), name), seed=seed
        )
    return samples.map(lambda drawn: _mapped(drawn, transformation.map, name))


def _mapped(drawn: DrawnRecord, function: Callable[[Record], Any], name: str) -> DrawnRecord:
    if drawn.record is None:
        return drawn
    try:
        record = function(drawn.record)
        if not isinstance(record, Record):
            raise TypeError(f"it gives {type(record).__name__} instead of a Record")
        if record.task != drawn.record.task:
            raise TypeError(f"it changes the task from {drawn.record.task!r} to {record.task!r}")
        return drawn._replace(record=check_record(record))
    except NOT_OF_A_RECORD:
        raise
    except BaseException as error:
        return _failed(drawn, name, error)


def _kept(drawn: DrawnRecord, function: Callable[[Record], Any], name: str) -> DrawnRecord:
    if drawn.record is None:
        return drawn
    try:
        kept = function(drawn.record)
        if not isinstance(kept, bool | np.bool_):
            raise TypeError(f"it gives {type(kept).__name__} instead of a truth value")
    except NOT_OF_A_RECORD:
        raise
    except BaseException as error:
        return _failed(drawn, name, error)
    return drawn if kept else drawn._replace(record=None, filtered=True)


def _failed(drawn: DrawnRecord, name: str, error: BaseException) -> DrawnRecord:
    """The record as one that cannot be read.

    Raises:
      StorageError: if the transformation could not read a file of its own, although it may be whole.
    """
    record = drawn.record
    assert record is not None
    failure = f"the transformation {name} fails on record {record.id!r}"
    if isinstance(error, OSError) and not isinstance(error, ABSENT):
        raise StorageError(f"{failure} ({error}); run the same command again to continue") from None
    message = f"{failure} ({type(error).__name__}: {one_line(error)})"
    return drawn._replace(record=None, message=message)
