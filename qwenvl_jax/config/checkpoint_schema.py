"""The keys of `config.checkpoint`: when a run writes checkpoints and which of them it keeps."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from qwenvl_jax.config.constraints import OneOf, Range, require

_STEPS = 2**31 - 1  # the devices count steps in int32
TRAINING = "train/"  # begins the name of a figure in metrics.jsonl
EVALUATION = "evaluation/"  # and of one in evaluations.jsonl


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is written and kept in addition to `train.checkpoint_every` and `train.keep_checkpoints`."""

    # A checkpoint also begins when the last one is written and has begun so many minutes ago; 0: never.
    minutes: Annotated[float, Range(0, 100_000)] = 0.0
    # A checkpoint of every so many steps is kept for ever; 0: of none.
    keep_every: Annotated[int, Range(0, _STEPS)] = 0
    # So many checkpoints with the best figure are kept.
    keep_best: Annotated[int, Range(0, 1000)] = 0
    # That figure, as TensorBoard calls it: train/loss, evaluation/loss, evaluation/BENCHMARK/SCORE.
    best_by: str = "train/loss"
    best_is: Annotated[str, OneOf(("lowest", "highest"))] = "lowest"
    # A folder on the own disk of every host, "" without: local checkpoints, for a restart on the same hosts.
    local: str = ""
    # A local checkpoint of every so many steps; 0: of none.
    local_every: Annotated[int, Range(0, _STEPS)] = 0
    # A local checkpoint also begins when the last one is written and has begun so many minutes ago; 0: never.
    local_minutes: Annotated[float, Range(0, 100_000)] = 0.0

    @property
    def best_needs_evaluation(self) -> bool:
        """Whether the best checkpoints are known by a figure that is measured while the stage trains."""
        return self.keep_best > 0 and self.best_by.startswith(EVALUATION)

    def check(self, path: str) -> None:
        """Raises UserError if the figure cannot be one, or the keys for local checkpoints do not fit together."""
        require(
            self.best_by.startswith((TRAINING, EVALUATION)),
            f"{path}.best_by is {self.best_by!r}; name a figure as TensorBoard does, such as train/loss or "
            "evaluation/loss",
        )
        require(
            bool(self.local) == bool(self.local_every or self.local_minutes),
            f"{path}.local is {self.local!r}, {path}.local_every {self.local_every} and {path}.local_minutes "
            f"{self.local_minutes}; give a folder and a number of steps or minutes, or leave all of them out",
        )


ONLY_THE_NEWEST = CheckpointConfig()
