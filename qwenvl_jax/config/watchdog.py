"""When a run counts as hung. It changes nothing in the training."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import Range, require
from qwenvl_jax.config.values import LARGE


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """A run hangs if no step ends for `factor` times the median of its steps, and for `least_seconds` at least.

    The time for checkpoints and evaluations does not count. The first step, with what comes before it since the records
    are open, has `first_step_seconds`. A checkpoint, from its beginning until it is written in the background, has as
    many of its own medians; the first one of a start has `first_checkpoint_seconds`.
    """

    factor: Annotated[float, Range(1, LARGE)] = 20.0
    # More than twice QWENVL_STORAGE_PATIENCE, or an outage of the storage would end the run early; 0: no watchdog.
    least_seconds: Annotated[float, Range(0, LARGE)] = 900.0
    first_step_seconds: Annotated[float, Range(0, LARGE, above=True)] = 7200.0
    first_checkpoint_seconds: Annotated[float, Range(0, LARGE, above=True)] = 7200.0

    def check(self, path: str) -> None:
        """Raises UserError if the first step or checkpoint has less time than the others."""
        for name in ("first_step_seconds", "first_checkpoint_seconds"):
            require(
                getattr(self, name) >= self.least_seconds,
                f"{path}.{name} {getattr(self, name)} must be at least {path}.least_seconds {self.least_seconds}",
            )


DEFAULTS = WatchdogConfig()
