"""The columns of a table of results, the same in Markdown and in HTML."""

from __future__ import annotations

from qwenvl_jax.evaluation.report import numbers
from qwenvl_jax.evaluation.report.tables import Line, Table

# Columns after the benchmark, the checkpoint and the paper's models.
MEASURED = (
    "score",
    "95 % interval",
    "difference",
    "p",
    "shown from",
    "released rule",
    "clean subset",
    "questions",
    "not asked",
    "seconds",
    "tokens / right",
)


def details_header(table: Table) -> list[str]:
    """The titles of the columns of `details`."""
    return ["benchmark", "checkpoint", *table.models, *MEASURED]


def details(table: Table) -> list[list[str]]:
    """One row per figure and checkpoint."""
    rows = []
    for line in table.lines:
        papers = [numbers.of_paper(line.paper.get(model)) for model in table.models]
        rows.append([line.title, line.checkpoint, *papers, *_measured(line)])
    return rows


def _measured(line: Line) -> list[str]:
    figure, entry = line.figure, line.entry
    return [
        numbers.score(figure),
        numbers.interval(figure),
        numbers.change(line.comparison),
        numbers.p_value(line.comparison),
        numbers.smallest(figure, line.comparison),
        numbers.score(figure.upstream_exact if figure else None),
        numbers.with_count(figure.clean if figure else None),
        f"{figure.questions if figure else entry.questions if entry else 0:,}",
        f"{entry.unanswered:,}" if entry else numbers.NOTHING,
        numbers.rounded(entry.seconds if entry else None),
        numbers.rounded(entry.tokens_per_right_answer if entry else None),
    ]


def overview_header(table: Table) -> list[str]:
    """The titles of the columns of `overview`, in the paper's layout: one benchmark per column."""
    return ["model", *table.columns]


def overview(table: Table) -> list[list[str]]:
    """One row per model of the paper, then one per checkpoint."""
    rows = []
    for model in table.models:
        papers = [next(iter(lines.values())).paper for lines in table.columns.values()]
        rows.append([f"{model} (paper)", *(numbers.of_paper(paper.get(model)) for paper in papers)])
    for checkpoint in table.checkpoints:
        cells = [checkpoint]
        for lines in table.columns.values():
            figure = lines[checkpoint].figure if checkpoint in lines else None
            cells.append(f"{numbers.score(figure)} {numbers.interval(figure)}" if figure else numbers.NOTHING)
        rows.append(cells)
    return rows
