"""Digests of everything the batches of a stage depend on: they tell whether a position in the data can be continued.

The paths of files are not included: data, vocabulary and runs may move to another disk or bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import grain

from qwenvl_jax.config import DataConfig, Mark, marks, to_dict
from qwenvl_jax.data.readers.source import Source
from qwenvl_jax.data.tokenizer import Tokenizer

VERSION = 2  # of the code that mixes, reads, tokenises and packs; raise it when the same records give other batches
_CODE = "the code that builds the stream"
_DIGITS = 12


def facts(data: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer, queries: int) -> dict[str, str]:
    """Everything the batches depend on: from a readable name to a digest."""
    values = _settings(data)
    for source in values["mixture"]:
        del source["records"]
    order = [grain.MapDataset.range(n).shuffle(seed=7)[k] for n in (5, 1000, 3_000_000_000) for k in range(5)]
    records = {
        f"the records of source {entry.name!r}": f"{len(source)} {source.samples} {source.digest()[:_DIGITS]}"
        for entry, source in zip(data.mixture, sources, strict=True)
    }
    return {
        "config.data": _digest([values, queries]),
        "the vocabulary": tokenizer.digest[:_DIGITS],
        **records,
        "the order in which the installed grain shuffles": _digest([int(index) for index in order]),
        _CODE: str(VERSION),
    }


def combined(facts: Mapping[str, str]) -> str:
    """Twelve hex digits of all facts together."""
    return _digest(dict(facts))


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the facts that have changed. If the code that builds the stream has, no other fact says anything."""
    if then.get(_CODE) != now.get(_CODE):
        return [_CODE]
    return [name for name in dict.fromkeys((*then, *now)) if then.get(name) != now.get(name)]


def _settings(data: DataConfig) -> dict[str, Any]:
    """The values that the batches depend on, with the shape of an image group for the keys that determine it."""
    values = {key: value for key, value in to_dict(data).items() if Mark.FREE_ON_RESUME not in marks(DataConfig, key)}
    del values["images_per_row"]
    if not data.heldout_share:
        del values["heldout_share"]  # a key of later versions, which changes nothing then
    return values | {"group_rows": data.group_rows, "group_images": data.group_images}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
