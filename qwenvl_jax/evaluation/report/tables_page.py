"""tables.html: the paper's tables with the figures of a sweep, curves, and examples of the last checkpoint."""

from __future__ import annotations

import html
from collections.abc import Sequence

from etils import epath

from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED
from qwenvl_jax.evaluation.config import BenchmarkConfig, EvalConfig
from qwenvl_jax.evaluation.report import columns, curves, numbers, sections
from qwenvl_jax.evaluation.report.examples import LONGEST, examples, short
from qwenvl_jax.evaluation.report.tables import Table, tables_of, title_of
from qwenvl_jax.evaluation.results.answers import read_rows, summary_of
from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.progress import Unfinished
from qwenvl_jax.html.page import bullets, header, page, section, visible
from qwenvl_jax.html.tables import Cell, table
from qwenvl_jax.runtime.errors import UserError

CATEGORIES = 100  # of a benchmark that are listed
REASONS = 3  # of questions that could not be asked, for each benchmark of a checkpoint
_SIGNIFICANT = 0.05
_LINKS = (
    ("steps", "Over training"),
    ("shots", "Few-shot"),
    ("unfinished", "Not finished"),
    ("unanswered", "Not answered"),
    ("examples", "Examples"),
)
# Added to the style that all reports share.
STYLE = """
td.up { color: var(--good); } td.down { color: var(--bad); }
#examples h3 { margin: 1.8rem 0 .6rem; }
.frames { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.scroll + .scroll { margin-top: 1.4rem; }
details { margin: .6rem 0 1rem; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
"""


def tables_page(
    config: EvalConfig, predictions: epath.Path, entries: Sequence[Entry], unfinished: Sequence[Unfinished] = ()
) -> str:
    """The whole page.

    Args:
      config: of the sweep.
      predictions: its folder of that name.
      entries: see `entries.Entry`.
      unfinished: the benchmarks that have no result yet.
    """
    tables = tables_of(entries)
    parts = [sections.unfinished_section(unfinished), *(_table_section(each, entries) for each in tables)]
    parts += [curves.steps_section(entries), curves.shots_section(entries), _unanswered(predictions, entries)]
    parts.append(_examples(config, predictions, entries))
    links = [(_anchor(each), each.title.partition(" · ")[0]) for each in tables]
    content = "\n".join(filter(None, parts))
    links += [(anchor, title) for anchor, title in _LINKS if f'<section id="{anchor}">' in content]
    intro = (
        f"{len({entry.checkpoint for entry in entries})} checkpoints, "
        f"{len({entry.label for entry in entries})} benchmarks. Intervals contain the true value in 95 % of all cases; "
        "questions about one picture count as one draw. Differences are paired by question."
    )
    content = header("Results and the paper's", intro, links) + content
    return visible(page("Qwen-VL in JAX · tables", content, style=sections.STYLE + STYLE))


def _anchor(each: Table) -> str:
    return f"table-{each.key or 'other'}"


def _table_section(each: Table, entries: Sequence[Entry]) -> str:
    overview = table(_cut(columns.overview_header(each)), map(_cut, columns.overview(each))) if each.columns else ""
    rows = [
        _details_row(cells, line.comparison.p if line.comparison else None)
        for cells, line in zip(columns.details(each), each.lines, strict=True)
    ]
    details = table(_cut(columns.details_header(each)), rows, text_columns=2)
    notes = bullets(f"{short(title)}: {html.escape(note)}" for title, note in each.notes) if each.notes else ""
    shown = {id(line.entry) for line in each.lines if line.entry}
    categories = "".join(_categories(entry) for entry in entries if id(entry) in shown)
    return section(_anchor(each), each.title, "", overview + details + notes + categories)


def _cut(cells: Sequence[str]) -> list[str]:
    return [cell if len(cell) <= LONGEST else cell[: LONGEST - 1] + "…" for cell in cells]


def _details_row(cells: Sequence[str], p: float | None) -> list[object]:
    """The cells of a line; a difference that chance hardly explains is coloured."""
    row: list[object] = list(_cut(cells))
    index = len(cells) - len(columns.MEASURED) + columns.MEASURED.index("difference")
    if p is not None and p < _SIGNIFICANT:
        row[index] = Cell(html.escape(cells[index]), "down" if cells[index].startswith("-") else "up")
    return row


def _categories(entry: Entry) -> str:
    """The figures of categories of the main figure, folded in; empty if there are fewer than two."""
    main = next(iter(entry.figures.values()), None)
    figures = main.figures if main else {}
    if len(figures) < 2:
        return ""
    rows = [
        [*_cut([name]), numbers.score(figure), numbers.interval(figure), f"{figure.questions:,}"]
        for name, figure in list(figures.items())[:CATEGORIES]
    ]
    title = f"{short(title_of(entry))}, {short(entry.checkpoint)}: {len(figures)} categories"
    inner = table(["category", "score", "95 % interval", "questions"], rows)
    return f"<details><summary>{title}</summary>{inner}</details>"


def _unanswered(predictions: epath.Path, entries: Sequence[Entry]) -> str:
    """Questions that could not be asked, the first ones of each benchmark with the reason; empty if all could."""
    items = []
    for entry in entries:
        if not entry.unanswered:
            continue
        summary = summary_of(predictions / entry.checkpoint, entry.label) or {}
        missing = summary.get(UNANSWERED, [])
        reasons = "; ".join(f"{short(str(each['id']))}: {short(str(each['why']))}" for each in missing[:REASONS])
        name = f"{short(entry.checkpoint)}, {short(title_of(entry))}"
        first = f", first {reasons}" if reasons else ""
        items.append(f"{name}: {entry.unanswered:,} of {entry.questions:,}{first}")
    if not items:
        return ""
    intro = "These questions could not be asked, because their record or picture cannot be read. They count as wrong."
    return section("unanswered", "Not answered", intro, bullets(items))


def _examples(config: EvalConfig, predictions: epath.Path, entries: Sequence[Entry]) -> str:
    """Examples of the published benchmarks, answered by the last checkpoint that has them."""
    last = {entry.label: entry for entry in entries}
    parts = []
    for item in config.benchmarks:
        entry = last.get(item.label)
        if entry is not None and item.benchmark.task == EVALUATION:
            cards = _cards(item, predictions / entry.checkpoint)
            title = f"{short(title_of(entry))} · {short(entry.checkpoint)}"
            parts.append(f"<h3>{title}</h3>{cards}" if cards else "")
    if not any(parts):
        return ""
    intro = (
        "Questions of records that are spread evenly over each benchmark; up to three right answers, then wrong ones."
    )
    return section("examples", "Examples", intro, sections.LEGEND + "".join(parts))


def _cards(item: BenchmarkConfig, folder: epath.Path) -> str:
    """The examples of a benchmark; empty if its records are gone, since the tables need none."""
    try:
        reader = RecordReader(item.records, item.split or item.benchmark.split or "train")
    except UserError:
        return ""
    return examples(item.benchmark, read_rows(folder, item.label), reader, item.limit)
