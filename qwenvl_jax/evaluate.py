"""Scores checkpoints on benchmarks, or shows what was scored as tables and pages.

    python -m qwenvl_jax.evaluate --config=configs/quickstart/eval.py [--output=DIR] [--config.batch_size=8]
    python -m qwenvl_jax.evaluate --report --output=DIR
    python -m qwenvl_jax.evaluate --judge --output=DIR --endpoint=URL --model=NAME [--key_variable=NAME]

The first writes predictions and scores.json, and the tables of published benchmarks. The second makes tables.html,
tables.md, results.json, the scalars of TensorBoard and, for held-out training tasks, report.html from the predictions,
without running a model. The third has a language model score the answers to TouchStone (`evaluation.judging`).
"""

from __future__ import annotations

from absl import flags, logging

from qwenvl_jax.config import from_config_dict
from qwenvl_jax.conversion.imported_runs import with_imported
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.evaluation import config as eval_config
from qwenvl_jax.evaluation.judging.judge import JudgeSettings
from qwenvl_jax.evaluation.judging.judge_sweep import judge_sweep
from qwenvl_jax.evaluation.report.everything import write_reports
from qwenvl_jax.evaluation.results.progress import unfinished
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime import commandline, distributed, log, preflight, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.versions import SETUP_AGAIN, versions

_CONFIG = commandline.define_config("What to evaluate; see configs/quickstart/eval.py.", eval_config.FORMER_KEYS)
_OUTPUT = flags.DEFINE_string("output", "", "Where results go; default: the config's `output`.")
_REPORT = flags.DEFINE_bool("report", False, "Write tables and pages from the results in --output.")
_JUDGE = flags.DEFINE_bool("judge", False, "Judge the answers in --output that need it, by the model at --endpoint.")
_ENDPOINT = flags.DEFINE_string("endpoint", "", "Of the judge: OpenAI-compatible, up to and with the version.")
_MODEL = flags.DEFINE_string("model", "gpt-4", "Of the judge: its name at the endpoint.")
_KEY_VARIABLE = flags.DEFINE_string("key_variable", "", "Environment variable with the key of the endpoint, if any.")
_INSTRUCTION = flags.DEFINE_string("instruction", "", "JSON with the judge's texts `system` and `user`; default: ours.")
_TIMEOUT = flags.DEFINE_float("timeout", 120.0, "Seconds to wait for a reply of the judge.", lower_bound=0.1)
_CONCURRENCY = flags.DEFINE_integer("concurrency", 4, "Requests to the judge at the same time.", 1, 1024)


def main() -> None:
    """Evaluates checkpoints, judges their answers, or writes the page that shows what was evaluated."""
    if _JUDGE.value:
        _judge()
        return
    if _REPORT.value:
        if not _OUTPUT.value:
            raise UserError("`evaluate --report` needs --output: the folder that an evaluation wrote")
        _report(_OUTPUT.value)
        return
    if _CONFIG.value is None:
        raise UserError("evaluate needs --config: a file such as configs/quickstart/eval.py")
    values = _CONFIG.value
    if _OUTPUT.value:
        values.output = _OUTPUT.value
    distributed.initialize()
    with distributed.together():  # if one process fails, all end
        config = eval_config.validate(from_config_dict(eval_config.EvalConfig, values))
        distributed.agree(versions(), SETUP_AGAIN)
        preflight.check_folder(config.output)
        config = with_imported(config)
        sweep(config)
        if any(item.benchmark.task == EVALUATION for item in config.benchmarks):
            distributed.from_primary(lambda: _report(config.output))


def _report(output: str) -> None:
    for path in write_reports(output):
        print(f"wrote {path}")
    for benchmark in unfinished(storage.path(output)):
        print(log.printable(f"not finished: {benchmark}"))


def _judge() -> None:
    if not _OUTPUT.value or not _ENDPOINT.value:
        raise UserError("`evaluate --judge` needs --output, the folder that an evaluation wrote, and --endpoint")
    settings = JudgeSettings(
        _ENDPOINT.value,
        _MODEL.value,
        _KEY_VARIABLE.value,
        timeout=_TIMEOUT.value,
        concurrency=_CONCURRENCY.value,
        instruction_file=_INSTRUCTION.value,
    )
    judge_sweep(_OUTPUT.value, settings)
    _report(_OUTPUT.value)


if __name__ == "__main__":
    commandline.run(main, needs_config=False, verbosity=logging.ERROR)  # Orbax reports every file
