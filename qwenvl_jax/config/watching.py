"""What a run shows of itself: `config.watching`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import OneOf, Range, require
from qwenvl_jax.config.values import SizeOrZero

HOST_SYNC = ("allowed", "refused")


@dataclasses.dataclass(frozen=True)
class WatchingConfig:
    """What a run shows of itself. It changes nothing in the training."""

    profile_steps: tuple[int, ...] = ()  # the first and the last step of which the devices are traced
    profile_every: SizeOrZero = 0  # steps between two traces of three steps each; 0 traces none
    report_minutes: Annotated[float, Range(0, 10_000)] = 10.0  # between two versions of report.html; 0 writes none
    # Whether values may be fetched from the devices between log steps, which would make them wait for the host.
    host_sync: Annotated[str, OneOf(HOST_SYNC)] = "allowed"
    wandb: str = ""  # a project of Weights & Biases that gets the metrics as well
    goodput_job: str = ""  # a name under which ml-goodput-measurement logs the run on Google Cloud

    def check(self, path: str) -> None:
        """Raises UserError if the steps of the profile are no first and last step."""
        steps = self.profile_steps
        require(
            len(steps) in (0, 2) and (not steps or 1 <= steps[0] <= steps[1]),
            f"{path}.profile_steps is {steps}; give the first and the last step, such as (100, 105), or ()",
        )


DEFAULTS = WatchingConfig()
