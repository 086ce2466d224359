"""Scores checkpoints on benchmarks, or shows what was scored as tables and pages.

    python -m qwenvl_jax.evaluate --config=configs/quickstart/eval.py [--output=DIR] [--config.batch_size=8]
    python -m qwenvl_jax.evaluate --report --output=DIR

The first writes predictions and scores.json. The second makes tables.html, tables.md, results.json, the scalars of
TensorBoard and, for held-out training tasks, report.html from them, without running a model.
"""

from __future__ import annotations

from absl import flags, logging

from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation import config as eval_config
from qwenvl_jax.evaluation.report.everything import write_reports
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime import commandline, distributed
from qwenvl_jax.runtime.errors import UserError

_CONFIG = commandline.define_config("What to evaluate; see configs/quickstart/eval.py.")
_OUTPUT = flags.DEFINE_string("output", "", "Where results go; default: the config's `output`.")
_REPORT = flags.DEFINE_bool("report", False, "Write tables and pages from the results in --output.")


def main() -> None:
    """Evaluates checkpoints, or writes the page that shows what was evaluated."""
    if _REPORT.value:
        if not _OUTPUT.value:
            raise UserError("`evaluate --report` needs --output: the folder that an evaluation wrote")
        print("\n".join(f"wrote {path}" for path in write_reports(_OUTPUT.value)))
        return
    if _CONFIG.value is None:
        raise UserError("evaluate needs --config: a file such as configs/quickstart/eval.py")
    values = _CONFIG.value
    if _OUTPUT.value:
        values.output = _OUTPUT.value
    distributed.initialize()
    with distributed.together():  # if one process fails, all end
        config = eval_config.validate(from_config_dict(eval_config.EvalConfig, values))
        distributed.check_shared(config.output)
        sweep(config)


if __name__ == "__main__":
    commandline.run(main, needs_config=False, verbosity=logging.ERROR)  # Orbax reports every file
