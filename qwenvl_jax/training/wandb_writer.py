"""Metrics for Weights & Biases, if `config.watching.wandb` names a project."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import uuid

from etils import epath

from qwenvl_jax.checkpoint.layout import WANDB
from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError, one_line


def check_installed() -> None:
    """Refuses a project without the package.

    Raises:
      UserError: if it is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "config.watching.wandb needs the package wandb; install what requirements-watch.txt lists, or leave the "
            "key empty"
        )


class WandbWriter:
    """Sends numbers of a run, under the names of the TensorBoard events.

    All starts of a run are one run there: its id is kept in the run's folder. Steps that a start repeats are there
    once. What the package writes on the disk goes into the run's folder, or into a temporary one if that is on gs://.

    Args:
      workdir: the run's folder.
      config: the run's.

    Raises:
      UserError: if the package refuses, for example because nobody has logged in.
    """

    def __init__(self, workdir: epath.Path, config: Config) -> None:
        import wandb

        try:
            run_id = storage.read_bytes(workdir / WANDB).decode()
        except FileNotFoundError:
            run_id = uuid.uuid4().hex[:16]
            storage.write_bytes(workdir / WANDB, run_id.encode())
        folder = tempfile.mkdtemp(prefix="qwenvl-wandb-") if storage.is_remote(workdir) else os.fspath(workdir)
        settings = wandb.Settings(silent=True)
        try:
            self._run = wandb.init(
                project=config.watching.wandb,
                id=run_id,
                name=workdir.name,
                resume="allow",
                dir=folder,
                config=to_dict(config),
                settings=settings,
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases refuses the project {config.watching.wandb!r} ({one_line(error)}); log in with "
                "`wandb login`, set WANDB_MODE=offline, or leave config.watching.wandb empty"
            ) from None

    def add(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of `step` by their names, e.g. `train/loss`."""
        self._run.log(values, step=step)

    def flush(self) -> None:
        """Does nothing: the package sends from a process of its own."""

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()
