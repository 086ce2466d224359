"""Writes the generated part of docs/benchmarks.md: the table of published benchmarks, and the notes on them.

python -m qwenvl_jax.evaluation.benchmarks.page
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.registry import JOINED_ROWS, PUBLISHED, JoinedRow
from qwenvl_jax.runtime import storage

PAGE = "docs/benchmarks.md"
MARK = "<!-- The rest is written by `python -m qwenvl_jax.evaluation.benchmarks.page`. -->\n"


def generated() -> str:
    """The table, one line per benchmark, and the notes."""
    lines = [
        "## The table",
        "",
        "Limits are the largest and the smallest number of new tokens. *Likelihood* means that the letters of the",
        "options are compared. Figures are those of the paper: Qwen-VL / Qwen-VL-Chat.",
        "",
        "| name | records | prompt | limits | metric | paper |",
        "|---|---|---|---|---|---|",
        *map(_line, PUBLISHED.values()),
        *map(_joined_line, JOINED_ROWS),
        "",
        "## Notes",
        "",
    ]
    notes: dict[str, list[str]] = {}
    entries: list[Benchmark | JoinedRow] = [*PUBLISHED.values(), *JOINED_ROWS]
    for entry in entries:
        if entry.note:
            notes.setdefault(entry.note, []).append(entry.title)
    lines += [f"- **{', '.join(titles)}.** {note}" for note, titles in notes.items()]
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """The page with its generated part written anew."""
    before, _, _ = page.partition(MARK)
    return f"{before}{MARK}\n{generated()}"


def _line(benchmark: Benchmark) -> str:
    cells = (
        f"`{benchmark.name}`",
        f"`{benchmark.corpus}_{benchmark.split}`",
        _code(benchmark.prompt),
        "likelihood" if benchmark.compared else f"{benchmark.max_new_tokens}, {benchmark.min_new_tokens}",
        "a judge" if benchmark.judged else f"`{benchmark.metric}`{', on a server' if benchmark.hidden else ''}",
        _all_figures(benchmark),
    )
    return f"| {' | '.join(cells)} |"


def _joined_line(row: JoinedRow) -> str:
    names = " and ".join(f"`{name}`" for name in row.weights)
    return f"| {row.title} | mean of {names} | | | | {_figures(row.paper)} |"


def _code(text: str) -> str:
    """A text as code within a cell of a table."""
    return "`" + text.replace("\n", "\\n").replace("|", "\\|") + "`"


def _figures(paper: Mapping[str, float]) -> str:
    """The figures of the base model and of the chat model; a dash for a model without one."""
    if not paper:
        return ""
    return " / ".join(str(paper[model]) if model in paper else "-" for model in ("Qwen-VL", "Qwen-VL-Chat"))


def _all_figures(benchmark: Benchmark) -> str:
    """The main figure, and the first two of the others: images and videos of SEED-Bench, the two sums of MME."""
    named = list(benchmark.paper_figures.items())[:2]
    figures = [_figures(benchmark.paper), *(f"{name} {_figures(paper)}" for name, paper in named)]
    return ", ".join(filter(None, figures))


if __name__ == "__main__":
    file = storage.path(PAGE)
    if not storage.exists(file):
        sys.exit(f"error: {PAGE} does not exist here; run this in the root of the repository")
    storage.write_bytes(file, updated(storage.read_bytes(file).decode()).encode())
    print(f"wrote {PAGE}")
