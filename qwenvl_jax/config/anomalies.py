"""Which steps are left out, and how many of them end a run: `config.anomalies`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import Range, require
from qwenvl_jax.config.values import LARGE, Count, SizeOrZero


@dataclasses.dataclass(frozen=True)
class AnomaliesConfig:
    """An anomaly is a step whose loss or gradient norm is not finite, or far above its running mean: a spike.

    It changes neither parameters nor moments. These keys may change when a run is continued, although another rule
    for spikes gives other parameters: a run that anomalies have ended may need one.
    """

    # A step is a spike if its loss, or its gradient norm, is more than so many times the running mean; 0: never.
    loss_factor: Annotated[float, Range(0, LARGE)] = 0.0
    gradient_factor: Annotated[float, Range(0, LARGE)] = 0.0
    mean_steps: Count = 100  # over how many steps the running means forget
    warmup_steps: SizeOrZero = 100  # no step is a spike before so many steps are in the means
    max_in_a_row: Count = 20  # so many anomalies in a row end the run
    max_recent: Count = 100  # so many among the last `recent_steps` end it too
    recent_steps: Count = 1000
    dumps: SizeOrZero = 3  # anomalies per start whose batch is written; that of the last one before the end always is

    @property
    def spikes(self) -> bool:
        """Whether there is a rule for spikes."""
        return self.loss_factor > 0 or self.gradient_factor > 0

    def check(self, path: str) -> None:
        """Raises UserError for a factor that would make ordinary steps spikes, or a limit that cannot be reached."""
        for name in ("loss_factor", "gradient_factor"):
            factor = getattr(self, name)
            require(
                factor == 0 or factor > 1, f"{path}.{name} is {factor}; it must be greater than 1, or 0 for no spikes"
            )
        require(
            self.max_recent <= self.recent_steps,
            f"{path}.max_recent {self.max_recent} must be at most {path}.recent_steps {self.recent_steps}",
        )


DEFAULTS = AnomaliesConfig()
