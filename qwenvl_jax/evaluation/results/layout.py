"""The files of a sweep under its output folder, by name."""

from __future__ import annotations

from etils import epath

from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

SCORES = "scores.json"
EVALUATION_FILE = "evaluation.json"
PROGRESS = "progress.json"
PREDICTIONS = "predictions"
SUBMISSIONS = "submissions"


def read_config(output: epath.Path) -> EvalConfig:
    """The resolved config of a sweep, which may be unfinished.

    Raises:
      UserError: if no sweep has begun in this folder.
    """
    file = output / EVALUATION_FILE
    if not storage.exists(file):
        raise UserError(
            f"{output} holds no {EVALUATION_FILE}; run `python -m qwenvl_jax.evaluate --config=..` first, or correct "
            "--output"
        )
    return from_config_dict(EvalConfig, artifacts.read_json(file), str(file))
