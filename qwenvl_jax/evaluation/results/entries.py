"""results.json: the figures of every checkpoint and benchmark of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from qwenvl_jax.evaluation.results.figures import Comparison, Figure
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

RESULTS = "results.json"
VERSION = 1
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One benchmark, asked in one way, of one checkpoint.

    Attributes:
      checkpoint: its name in the config.
      run: the folder of its training; checkpoints of one run make a curve.
      step: of the checkpoint; -1 if it is unknown.
      benchmark: its name in `benchmarks.registry.BENCHMARKS`.
      label: its name in the config and of its files.
      shots: answered questions before each.
      leak: whether these may show the pictures that are asked about.
      prompt: the template that replaced the benchmark's; "" if none did.
      baseline: the checkpoint with which it is compared; "" if there is none.
      judge: the model that scored the answers; "" if no model did.
      questions: how many there are, records that could not be read included.
      unanswered: how many of these could not be asked.
      seconds: that the answers took.
      tokens: that were generated.
      figures: see `figures.figures_of`; empty if only a server knows the truth.
      comparisons: see `figures.compare`.
    """

    checkpoint: str
    run: str
    step: int
    benchmark: str
    label: str
    shots: int
    leak: bool
    prompt: str
    baseline: str
    judge: str
    questions: int
    unanswered: int
    seconds: float
    tokens: int
    figures: Mapping[str, Figure]
    comparisons: Mapping[str, Comparison]

    @property
    def tokens_per_right_answer(self) -> float | None:
        """Generated tokens divided by right answers; None if answers are not right or wrong, or none is right."""
        main = next(iter(self.figures.values()), None)
        return self.tokens / main.right if main is not None and main.right else None


def write_results(output: epath.Path, entries: Sequence[Entry], made_from: str = "") -> None:
    """Writes `<output>/results.json`.

    Args:
      output: the folder of the sweep.
      entries: in order.
      made_from: digest of the predictions and the config.
    """
    content = {"version": VERSION, "made_from": made_from, "entries": [_plain(entry) for entry in entries]}
    artifacts.write_json(output / RESULTS, content)


def read_results(output: epath.Path, made_from: str | None = None) -> list[Entry]:
    """The entries of `<output>/results.json`.

    Args:
      output: the folder of the sweep.
      made_from: what they must have been made from; None accepts any.

    Raises:
      UserError: if the file is missing or of another version.
    """
    content = artifacts.read_json(output / RESULTS)
    try:
        if content["version"] != VERSION or made_from not in (None, content["made_from"]):
            raise ValueError("of another version")
        return [_read_entry(value) for value in content["entries"]]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"{output / RESULTS} is of another version; remove it and run the evaluation again") from None


# Figures are a list in the file, because `write_json` sorts the keys of objects, and the main figure comes first.
def _plain(value: Any) -> Any:
    """Dataclasses as objects, and mappings of names to dataclasses as lists of objects with a name."""
    if isinstance(value, Mapping):
        return [{"name": name, **_plain(each)} for name, each in value.items()]
    if isinstance(value, Entry | Figure | Comparison):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _read_entry(values: dict[str, Any]) -> Entry:
    figures = _read_named(values["figures"], _read_figure)
    comparisons = _read_named(values["comparisons"], _read_comparison)
    return Entry(**{**values, "figures": figures, "comparisons": comparisons})


def _read_named(values: list[dict[str, Any]], read: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    return {value["name"]: read({key: each for key, each in value.items() if key != "name"}) for value in values}


def _read_figure(values: dict[str, Any]) -> Figure:
    parts = {name: values[name] and _read_figure(values[name]) for name in ("upstream_exact", "clean")}
    return Figure(**{**values, **parts, "figures": _read_named(values["figures"], _read_figure)})


def _read_comparison(values: dict[str, Any]) -> Comparison:
    return Comparison(**{**values, "figures": _read_named(values["figures"], _read_comparison)})
