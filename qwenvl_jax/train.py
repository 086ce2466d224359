"""Trains one stage.

python -m qwenvl_jax.train --config=configs/stage1_pretrain.py --workdir=runs/stage1 [--config.key=value] [--dry_run]
    [--from_step=500]
    [--config.evaluation.every=500 --config.evaluation.split=heldout --benchmarks=configs/quickstart/eval.py]
"""

from __future__ import annotations

import functools
import sys

from absl import flags

from qwenvl_jax.checkpoint import layout, lineage
from qwenvl_jax.checkpoint.restore import check_init
from qwenvl_jax.config import FORMER_KEYS, Config, from_config_dict, load_config
from qwenvl_jax.runtime import commandline, compilation_cache, distributed, exit_codes, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import loop, summary
from qwenvl_jax.training.ledger import process_began
from qwenvl_jax.training.observers import MakeObserver
from qwenvl_jax.training.state import abstract_state

_CONFIG = commandline.define_config("The stage, e.g. configs/stage1_pretrain.py.", FORMER_KEYS)
_BENCHMARKS = commandline.define_config(
    "What to ask every config.evaluation.every steps, e.g. configs/quickstart/eval.py.", name="benchmarks"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://; the same one continues it.")
_FROM_STEP = flags.DEFINE_integer("from_step", None, "Go back to this checkpoint; later ones are moved aside.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check the config and print its tables; allocate nothing.")


def read_config() -> Config:
    """The config that the flags name."""
    return load_config(_CONFIG.value)


def _observers() -> list[MakeObserver]:
    """The benchmarks of --benchmarks, if there are any."""
    if _BENCHMARKS.value is None:
        return []
    from qwenvl_jax.evaluation import config as eval_config  # its packages are not needed otherwise
    from qwenvl_jax.evaluation.in_training import BenchmarkObserver

    settings = eval_config.validate(from_config_dict(eval_config.EvalConfig, _BENCHMARKS.value, "benchmarks"))
    return [functools.partial(BenchmarkObserver, settings, _WORKDIR.value)]


def main() -> None:
    """Trains the stage, or shows its tables if this is a dry run."""
    if _DRY_RUN.value:
        config = read_config()
        if _WORKDIR.value:
            lineage.check_resumable(_WORKDIR.value, config)
        summary.show(config, check_init(config, missing_ok=True), abstract_state(config))
        summary.show_passes(config)
        return
    if not _WORKDIR.value:
        read_config()  # a mistake in the config is reported first
        raise UserError("--workdir is missing; name the folder where checkpoints and metrics go")
    distributed.initialize()
    with distributed.together():  # if a value of the config is wrong on one host alone, all hosts end
        config = read_config()
        compilation_cache.use(config.compute.compilation_cache, storage.path(_WORKDIR.value) / layout.COMPILATION_CACHE)
        steps = loop.train(config, _WORKDIR.value, _observers(), process_began(), from_step=_FROM_STEP.value)
    if steps < config.train.steps:
        sys.exit(exit_codes.PREEMPTED)


if __name__ == "__main__":
    commandline.run(main)
