"""Metrics of steps: collected on the devices, fetched every `log_every` steps, summed up to one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.runtime import host_sync
from qwenvl_jax.training.step import Metrics

StepValues = dict[str, Any]  # the metrics of one step on the host: numbers, or lists with a number per source

_SUMS = ("tokens", "supervised_tokens", "images", "skipped")
_LOSSES, _SUPERVISED = "loss_sum_by_source", "supervised_by_source"  # the lists


class MetricsWindow:
    """The metrics of the steps since the last log line, some of them still on the devices.

    Args:
      values: of earlier steps of the window, as saved with a checkpoint.
    """

    def __init__(self, values: list[StepValues] | None = None) -> None:
        self._values = list(values or [])
        self._pending: list[Metrics] = []

    def add(self, metrics: Metrics) -> None:
        """Takes the metrics of a step without waiting for them."""
        self._pending.append(metrics)

    def wait_for_previous(self) -> None:
        """Waits for the step before the last one, so that the host runs ahead by at most one batch."""
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2])

    def values(self) -> list[StepValues]:
        """Fetches the pending metrics and returns those of all steps of the window, oldest first."""
        with host_sync.allowed():
            fetched = jax.device_get(self._pending)
        self._values += [{key: value.tolist() for key, value in step.items()} for step in fetched]
        self._pending = []
        return list(self._values)

    def clear(self) -> None:
        """Begins the next window; call it after `values`."""
        self._values = []


def summarize(values: list[StepValues]) -> dict[str, float]:
    """The numbers of one log line from the steps of a window.

    `loss` is per supervised token over the finite steps of the window; tokens, images and skipped steps are summed;
    everything else is that of the last step.
    """
    line = {key: value for key, value in values[-1].items() if key not in (_LOSSES, _SUPERVISED)}
    finite = [step for step in values if not step["skipped"]]
    supervised = sum(step["supervised_tokens"] for step in values)
    if finite and supervised:
        tokens = sum(step["supervised_tokens"] for step in finite)
        line["loss"] = sum(step["loss"] * step["supervised_tokens"] for step in finite) / max(tokens, 1)
    for key in _SUMS:
        line[key] = sum(step[key] for step in values)
    return line


def losses_by_source_and_task(
    values: list[StepValues], mixture: Sequence[SourceConfig]
) -> dict[str, dict[str, float | None]]:
    """The losses of a window by source and by task.

    Args:
      values: the steps of the window. Those from a checkpoint of an earlier version may lack these figures; they do not
        count.
      mixture: the sources, in the order of the lists.

    Returns:
      `loss_by_source` and `loss_by_task`: nats per supervised token over the finite steps, None without such tokens.
      `supervised_by_source` and `supervised_by_task`: supervised tokens over all steps.
    """
    complete = [step for step in values if _SUPERVISED in step]
    finite = [step for step in complete if not step["skipped"]]
    labels = {"source": [source.name for source in mixture], "task": [source.task for source in mixture]}
    groups: dict[str, dict[str, float | None]] = {}
    for kind, names in labels.items():
        losses = _totals(finite, _LOSSES, names)
        tokens = _totals(finite, _SUPERVISED, names)
        groups[f"loss_by_{kind}"] = {name: losses[name] / tokens[name] if tokens[name] else None for name in losses}
        groups[f"supervised_by_{kind}"] = {**_totals(complete, _SUPERVISED, names)}
    return groups


def _totals(values: list[StepValues], key: str, names: Sequence[str]) -> dict[str, float]:
    """The sums of a list of `StepValues` over steps, by name; sources with the same name are added up."""
    totals = dict.fromkeys(names, 0.0)
    for step in values:
        for name, value in zip(names, step[key], strict=True):
            totals[name] += value
    return totals
