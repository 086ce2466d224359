"""All reports of a sweep by one call: whatever the folder has."""

from __future__ import annotations

from etils import epath

from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.evaluation.report.markdown import tables_as_markdown
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.report.scalars import write_scalars
from qwenvl_jax.evaluation.report.tables_page import tables_page
from qwenvl_jax.evaluation.results.collected import current_entries
from qwenvl_jax.evaluation.results.layout import PREDICTIONS, read_config
from qwenvl_jax.evaluation.results.progress import unfinished
from qwenvl_jax.runtime import artifacts, storage

TABLES_PAGE = "tables.html"
TABLES = "tables.md"


def write_reports(output: epath.PathLike) -> list[epath.Path]:
    """Writes results.json, tables.md, tables.html, the scalars and, for held-out training tasks, report.html.

    After a killed sweep, and during one, they show the benchmarks that are finished and name the others.

    Returns:
      The files and folders that were written.

    Raises:
      UserError: if no evaluation has begun in this folder.
    """
    output = storage.path(output)
    config = read_config(output)
    predictions = output / PREDICTIONS
    remaining = unfinished(output)
    left_out = {(each.checkpoint, each.label) for each in remaining}
    entries = current_entries(config, output, predictions, left_out)
    artifacts.write_text(output / TABLES, tables_as_markdown(entries, remaining))
    artifacts.write_text(output / TABLES_PAGE, tables_page(config, predictions, entries, remaining))
    written = [output / TABLES_PAGE, output / TABLES, write_scalars(output, entries)]
    if any(item.benchmark.task != EVALUATION for item in config.benchmarks):
        written.append(write_report(output))
    return written
