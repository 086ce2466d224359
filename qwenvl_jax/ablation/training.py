"""Trains the arms of a study one after another, each by its command in a process of its own."""

from __future__ import annotations

import sys

from etils import epath

from qwenvl_jax.ablation.figures import figures_of, read_figures
from qwenvl_jax.ablation.page import PAGE, page
from qwenvl_jax.ablation.study import Study
from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.runtime import artifacts, child, exit_codes, log


def train(study: Study) -> int:
    """Trains what is not finished, and writes the page after every arm.

    A run that was interrupted goes on where it was. This process uses no device, so that the runs have them all.

    Returns:
      The exit code of the first arm that does not finish, or FINISHED.
    """
    for number, arm in enumerate(study.arms, start=1):
        title = f"[{number}/{len(study.arms)}] {arm.name}"
        if figures_of(arm, study.settings).finished:
            log.line(f"{title}: finished before")
            continue
        log.line(f"{title}\n    {arm.command_line}")
        code = child.run((sys.executable, "-m", *arm.command))
        if lineage.has_run(arm.workdir):
            write_page(study)
        if code != exit_codes.FINISHED:
            return code
    return exit_codes.FINISHED


def write_page(study: Study) -> epath.Path:
    """Writes the page of a study into its folder, whole or not at all, and returns its path.

    Raises:
      UserError: if no arm has begun.
    """
    artifacts.write_text(study.workdir / PAGE, page(study, read_figures(study)))
    return study.workdir / PAGE
