"""The paper's tables with the figures of a sweep: which lines each has, before they become Markdown or HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS, JOINED_ROWS, JoinedRow
from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.figures import Comparison, Figure, joined, joined_comparison

HELD_OUT = "held-out"
OTHER = ""
TITLES = {
    "4": "Table 4 · Image captioning and general VQA",
    "5": "Table 5 · Text-oriented VQA",
    "6": "Table 6 · Referring expressions",
    "7": "Table 7 · Instruction following",
    "11": "Table 11 · Pure text",
    OTHER: "Benchmarks that the paper does not report",
    HELD_OUT: "Held-out records of training tasks",
}
_HIDDEN = "Only a server knows the truth; the files to send are in the folder `submissions`."
_LEAK = "Exemplars may show the pictures that are asked about, with their answers, as in the released script."
# Further figures of a benchmark with a column in the overview: image and video of SEED-Bench, perception and cognition
# of MME.
_IN_OVERVIEW = 2


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure of one checkpoint.

    Attributes:
      title: of the benchmark, and of the figure if it is not the main one.
      checkpoint: its name.
      paper: the paper's figure by model.
      figure: None if only a server knows the truth.
      comparison: with the baseline; None if there is none.
      baseline: its name.
      entry: the benchmark to which the main figure belongs; None for a further or joined figure.
      in_overview: whether the figure has a column in the paper's layout, which has no room for all.
    """

    title: str
    checkpoint: str
    paper: Mapping[str, float]
    figure: Figure | None
    comparison: Comparison | None = None
    baseline: str = ""
    entry: Entry | None = None
    in_overview: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      key: of `TITLES`.
      models: those of the paper that have a figure in it.
      lines: those of one title follow one another.
      notes: (title, sentence) that a reader must know.
    """

    key: str
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """Its heading."""
        return TITLES[self.key]

    @property
    def checkpoints(self) -> list[str]:
        """Their names in order."""
        return list(dict.fromkeys(line.checkpoint for line in self.lines))

    @property
    def columns(self) -> dict[str, dict[str, Line]]:
        """The lines of the overview by title, then by checkpoint."""
        lines: dict[str, dict[str, Line]] = {}
        for line in self.lines:
            if line.in_overview:
                lines.setdefault(line.title, {})[line.checkpoint] = line
        return lines


def tables_of(entries: Sequence[Entry]) -> list[Table]:
    """The tables that have a figure or a submission, in the order of the paper, benchmarks in that of the registry."""
    order = {name: number for number, name in enumerate(BENCHMARKS)}
    known = sorted((entry for entry in entries if entry.benchmark in BENCHMARKS), key=lambda e: order[e.benchmark])
    groups: dict[str, dict[str, list[Entry]]] = {key: {} for key in TITLES}
    for entry in known:
        groups[_key(BENCHMARKS[entry.benchmark])].setdefault(title_of(entry), []).append(entry)
    return [_table(key, titled) for key, titled in groups.items() if titled]


def title_of(entry: Entry) -> str:
    """The title of a benchmark and, if it was asked in an unusual way, how."""
    benchmark = BENCHMARKS.get(entry.benchmark)
    title = benchmark.title if benchmark else entry.benchmark
    if benchmark and entry.shots != benchmark.shots:
        title += f", {entry.shots}-shot"
    if entry.leak and entry.shots:
        title += " with leaks"
    usual = (entry.benchmark, f"{entry.benchmark}_{entry.shots}_shots")  # as in configs/evaluation/few_shot.py
    return title if entry.label in usual else f"{title} ({entry.label})"


def _key(benchmark: Benchmark) -> str:
    if benchmark.task != EVALUATION:
        return HELD_OUT
    return benchmark.table if benchmark.table in TITLES else OTHER


def _table(key: str, titled: Mapping[str, Sequence[Entry]]) -> Table:
    lines = []
    notes: dict[tuple[str, str], None] = {}
    shown: list[Entry] = []
    for title, entries in titled.items():
        lines += _lines(title, entries)
        shown += entries
        benchmark = BENCHMARKS[entries[0].benchmark]
        leak = _LEAK if any(entry.leak and entry.shots for entry in entries) else ""
        hidden = _HIDDEN if benchmark.hidden else ""
        for note in (benchmark.note, leak, *_released_notes(entries), *_judge_notes(entries), hidden):
            notes[title, note] = None
        for row in JOINED_ROWS:
            if list(row.weights)[-1] == benchmark.name and entries[0].label == benchmark.name:
                lines += _joined_lines(row, shown)
                notes[row.title, row.note] = None
    models = dict.fromkeys(model for line in lines for model in line.paper)
    return Table(key, tuple(models), tuple(lines), tuple(note for note in notes if note[1]))


def _lines(title: str, entries: Sequence[Entry]) -> list[Line]:
    """The main figure of each checkpoint, then the others that the paper has, too."""
    benchmark = BENCHMARKS[entries[0].benchmark]
    lines = []
    further: dict[str, list[Line]] = {}
    for entry in entries:
        names = list(entry.figures)
        main = names[0] if names else ""
        comparison = entry.comparisons.get(main)
        lines.append(
            Line(
                title,
                entry.checkpoint,
                benchmark.paper if entry.shots == benchmark.shots else {},
                entry.figures.get(main),
                comparison,
                entry.baseline,
                entry,
                in_overview=entry.shots == benchmark.shots,
            )
        )
        for number, (name, figure, change) in enumerate(_further_figures(entry, benchmark, main)):
            paper = benchmark.paper_figures.get(name, {})
            shown = number < _IN_OVERVIEW and entry.shots == benchmark.shots
            line = Line(f"{title} · {name}", entry.checkpoint, paper, figure, change, entry.baseline, in_overview=shown)
            further.setdefault(name, []).append(line)
    return [*lines, *(line for each in further.values() for line in each)]


def _further_figures(entry: Entry, benchmark: Benchmark, main: str) -> Iterable[tuple[str, Figure, Comparison | None]]:
    """Those of the benchmark other than the main one, and those of its categories that the paper reports."""
    for name, figure in entry.figures.items():
        if name != main:
            yield name, figure, entry.comparisons.get(name)
    if main:
        changes = entry.comparisons[main].figures if main in entry.comparisons else {}
        for name in benchmark.paper_figures:
            if name in entry.figures[main].figures:
                yield name, entry.figures[main].figures[name], changes.get(name)


def _joined_lines(row: JoinedRow, entries: Sequence[Entry]) -> list[Line]:
    """A line for each checkpoint that was asked all benchmarks of the row."""
    lines = []
    for checkpoint in dict.fromkeys(entry.checkpoint for entry in entries):
        asked = {
            entry.benchmark: entry
            for entry in entries
            if entry.checkpoint == checkpoint and entry.label == entry.benchmark and entry.figures
        }
        if not set(row.weights) <= set(asked):
            continue
        parts = [asked[name] for name in row.weights]
        weights = list(row.weights.values())
        mains = [next(iter(part.figures)) for part in parts]
        changes = [part.comparisons[main] for part, main in zip(parts, mains, strict=True) if main in part.comparisons]
        figure = joined([part.figures[main] for part, main in zip(parts, mains, strict=True)], weights)
        change = joined_comparison(changes, weights) if len(changes) == len(parts) else None
        lines.append(Line(row.title, checkpoint, row.paper, figure, change, parts[0].baseline))
    return lines


def _released_notes(entries: Sequence[Entry]) -> list[str]:
    reasons = dict.fromkeys(figure.reason for entry in entries for figure in entry.figures.values())
    return [f"The released scripts give another figure, because {reason}." for reason in reasons if reason]


def _judge_notes(entries: Sequence[Entry]) -> list[str]:
    judges = dict.fromkeys(entry.judge for entry in entries if entry.judge)
    if not BENCHMARKS[entries[0].benchmark].judged:
        return []
    return [f"The judge is {', '.join(judges)}." if judges else "No judge has scored the answers yet (--judge)."]
