"""Trains the arms of an ablation one after another, and writes one page that compares them.

python -m qwenvl_jax.ablate --config=configs/ablations/queries.py:size=miniature --workdir=runs/ablations/queries
    [--config.key=value] [--page_only]

Every arm is an ordinary training run in a folder of its own, `<workdir>/<arm>`. The same command continues: finished
arms are skipped. `--page_only` draws the page from what the arms have logged so far, wherever they were trained
(docs/ablations.md).
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from qwenvl_jax.ablation import training
from qwenvl_jax.ablation.figures import read_figures
from qwenvl_jax.ablation.page import figure_table
from qwenvl_jax.ablation.study import Study, read_study
from qwenvl_jax.config import FORMER_KEYS
from qwenvl_jax.runtime import commandline, exit_codes, log
from qwenvl_jax.runtime.errors import UserError

commandline.define_config("The ablation, e.g. configs/ablations/queries.py:size=miniature.", FORMER_KEYS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, local or gs://; the same one continues it.")
_PAGE_ONLY = flags.DEFINE_bool("page_only", False, "Train nothing; draw the page from the folders of the arms.")


def main() -> None:
    """Trains what is not finished, and writes the page."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; name the folder where the arms' folders and the page go")
    flag = flags.FLAGS["config"]
    path = str(config_flags.get_config_filename(flag))
    study = read_study(path, config_flags.get_override_values(flag), _WORKDIR.value)
    if not _PAGE_ONLY.value:
        code = training.train(study)
        if code != exit_codes.FINISHED:
            if exit_codes.retryable(code):
                log.line("the same command continues with this arm")
            sys.exit(code)
    page = training.write_page(study)
    _show(study)
    log.line(f"page: {page}")


def _show(study: Study) -> None:
    header, rows = figure_table(study, read_figures(study))
    log.table(study.settings.title, header, rows)


if __name__ == "__main__":
    commandline.run(main)
