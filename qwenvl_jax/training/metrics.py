"""Metrics of steps: collected on the devices, fetched every `log_every` steps, summed up to one line."""

from __future__ import annotations

import jax

from qwenvl_jax.training.step import Metrics

StepValues = dict[str, float]  # the metrics of one step on the host; JSON values

_SUMS = ("tokens", "supervised_tokens", "images", "skipped")


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
        fetched = jax.device_get(self._pending)
        self._values += [{key: value.item() for key, value in step.items()} for step in fetched]
        self._pending = []
        return list(self._values)

    def clear(self) -> None:
        """Begins the next window; call it after `values`."""
        self._values = []


def summarize(values: list[StepValues]) -> StepValues:
    """One log line from the steps of a window.

    `loss` is per supervised token over the finite steps of the window; tokens, images and skipped steps are summed;
    everything else is that of the last step.
    """
    line = dict(values[-1])
    finite = [step for step in values if not step["skipped"]]
    supervised = sum(step["supervised_tokens"] for step in values)
    if finite and supervised:
        tokens = sum(step["supervised_tokens"] for step in finite)
        line["loss"] = sum(step["loss"] * step["supervised_tokens"] for step in finite) / max(tokens, 1)
    for key in _SUMS:
        line[key] = sum(step[key] for step in values)
    return line
