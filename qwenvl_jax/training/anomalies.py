"""Anomalies of a run: steps whose update was left out are counted, their batches are written, too many end the run.

The device decides (`means.judge`). The host learns it when the next step is already running, so it never waits for a
step that it would not have waited for. All processes see the same values, and so stop after the same step.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from qwenvl_jax.config import Config
from qwenvl_jax.data.decoded_batches import ReturnedBatch
from qwenvl_jax.params import PyTree
from qwenvl_jax.runtime import distributed, host_sync, log
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.training import anomaly_dump
from qwenvl_jax.training.means import Means
from qwenvl_jax.training.step import Metrics

PROGRESS = "anomalies"  # key of the progress of a checkpoint


class Anomalies:
    """Watches the steps of a run.

    Args:
      config: the run's.
      workdir: its folder.
      streams: the logical streams of this process.
      progress: of the checkpoint that the run continues from; {} for a new run.
    """

    def __init__(self, config: Config, workdir: epath.Path, streams: list[int], progress: Mapping[str, Any]):
        saved = progress.get(PROGRESS, {})
        self._config = config
        self._workdir = workdir
        self._streams = streams
        self._saved_means = saved.get("means")
        self._recent = collections.deque(saved.get("recent", ()))  # anomalies among the last `recent_steps` steps
        self._total = int(saved.get("total", 0))
        self._dumps = 0
        self._pending: collections.deque[tuple[int, Metrics, ReturnedBatch]] = collections.deque()
        self._sentence = ""

    def means(self, abstract: PyTree) -> PyTree:
        """The running means to continue with, in the shapes and shardings of `abstract`."""
        saved = self._saved_means or [0.0] * len(jax.tree.leaves(abstract))
        leaves, tree = jax.tree.flatten(abstract)
        values = [
            jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)
            for leaf, value in zip(leaves, saved, strict=True)
        ]
        return jax.tree.unflatten(tree, values)

    def add(self, step: int, metrics: Metrics, batch: ReturnedBatch) -> None:
        """Takes note of a step that has been started, and of the batch that it was given."""
        with host_sync.allowed():  # nobody waits: the copy begins when the step ends
            metrics["skipped"].copy_to_host_async()
        self._pending.append((step, metrics, batch))

    def too_many(self) -> bool:
        """Whether the run must end. Looks at all steps but the last one, which may not have ended yet."""
        with host_sync.allowed():  # these steps have ended: `MetricsWindow.wait_for_previous`
            while len(self._pending) > 1:
                self._judge(*self._pending.popleft())
        return bool(self._sentence)

    def progress(self, means: PyTree) -> dict[str, Any]:
        """What a checkpoint after the last step keeps, as JSON values; waits for that step.

        If too many anomalies have ended the run, the next start counts anew.

        Args:
          means: of the state.
        """
        with host_sync.allowed():
            while self._pending:
                self._judge(*self._pending.popleft())
            saved: dict[str, Any] = {"total": self._total, "recent": [] if self._sentence else list(self._recent)}
            if isinstance(means, Means):
                saved["means"] = [leaf.tolist() for leaf in jax.device_get(means)]
        return saved

    def raise_if_too_many(self) -> None:
        """Raises UserError if the run must end; call it once the checkpoint is written."""
        if self._sentence:
            raise UserError(self._sentence)

    def _judge(self, step: int, metrics: Metrics, batch: ReturnedBatch) -> None:
        if not int(jax.device_get(metrics["skipped"])):
            return
        limits = self._config.anomalies
        self._recent.append(step)
        self._total += 1
        while self._recent[0] <= step - max(limits.recent_steps, limits.max_in_a_row):
            self._recent.popleft()
        in_a_row = next((k for k in range(len(self._recent)) if self._recent[-1 - k] != step - k), len(self._recent))
        recent = sum(each > step - limits.recent_steps for each in self._recent)
        ends = (in_a_row >= limits.max_in_a_row or recent >= limits.max_recent) and not self._sentence
        values = {key: value.tolist() for key, value in jax.device_get(metrics).items()}
        folder = None
        if ends or self._dumps < limits.dumps:
            self._dumps += 1
            folder = self._dump(step, values, batch)
        if ends:
            count = f"{in_a_row} steps in a row"
            if in_a_row < limits.max_in_a_row:
                count = f"{recent} of the last {min(step, limits.recent_steps)} steps"
            shown = f" ({anomaly_dump.command(self._workdir, step)} shows the last one)" if folder else ""
            self._sentence = (
                f"{count} up to step {step} were left out, because loss or gradients were not finite or rose suddenly"
                f"{shown}; correct the records or config.anomalies, or start again with a lower "
                "config.optimizer.peak_learning_rate; the parameters of the last good step are in the checkpoint"
            )

    def _dump(self, step: int, values: Mapping[str, Any], batch: ReturnedBatch) -> epath.Path | None:
        """Writes the batch of an anomaly; a disk that has no room for it does not end the run."""
        facts = {
            "step": step,
            "reason": reason(values),
            "updates": step - self._total,
            "processes": distributed.process_count(),
            "metrics": values,
        }
        try:
            folder = anomaly_dump.write(self._workdir, facts, batch, self._streams, self._config)
        except (OSError, StorageError) as error:
            log.line(f"step {step} was left out ({facts['reason']}); its batch could not be written: {error}")
            return None
        log.line(f"step {step} was left out ({facts['reason']}); its batch is in {folder}")
        return folder


def reason(values: Mapping[str, Any]) -> str:
    """Why a step is an anomaly, from its metrics."""
    for name, key in (("loss", "loss"), ("gradient norm", "grad_norm")):
        if not math.isfinite(values[key]):
            return f"the {name} is {values[key]}"
    return f"a spike: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"


def updates_of(step: int, progress: Mapping[str, Any]) -> int:
    """How often the parameters of a checkpoint have been updated."""
    return step - int(progress.get(PROGRESS, {}).get("total", 0))
