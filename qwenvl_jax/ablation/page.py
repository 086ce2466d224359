"""ablation.html: the arms of a study beside one another, on one self-contained page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from html import escape

from qwenvl_jax.ablation.figures import ArmFigures, Points
from qwenvl_jax.ablation.study import Arm, Study
from qwenvl_jax.html import page as html_page
from qwenvl_jax.html.charts import Measured, bands_chart, lines_chart
from qwenvl_jax.html.page import card, grid
from qwenvl_jax.html.tables import table
from qwenvl_jax.training.report.curves import averaged

PAGE = "ablation.html"  # in the folder of the study
_LINKS = (("curves", "Curves"), ("figures", "Figures"), ("commands", "Commands"))
_STYLE = """
pre { font: .8rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }
#commands .card { margin-top: .8rem; }
"""


def page(study: Study, figures: Mapping[str, ArmFigures], now: float | None = None) -> str:
    """The HTML of a study.

    Args:
      study: its arms.
      figures: of every arm, by its name.
      now: the time of writing in seconds since 1970; by default that of the system.
    """
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    folder = f"<code>{escape(str(study.workdir))}</code>"
    below = f'<p class="soft small">{escape(status(figures))} Written {written}, of {folder}.</p>'
    smoothing = (
        "Loss in nats per supervised token. A point is the mean of its neighbours, a twelfth of the curve on either "
        "side; the paper smooths its curves too, and does not say how."
    )
    parts = [
        html_page.header(study.settings.title, escape(study.settings.claim), _LINKS, below),
        html_page.section("curves", "Curves", smoothing, _curves(study, figures)),
        html_page.section("figures", "Figures", _note(study), table(*figure_table(study, figures)) + _scores(figures)),
        html_page.section("commands", "Commands", "Every arm is a training run of its own.", _commands(study.arms)),
    ]
    return html_page.page(study.settings.title, html_page.visible("\n".join(parts)), style=_STYLE)


def status(figures: Mapping[str, ArmFigures]) -> str:
    """How many arms are finished, in one sentence."""
    return f"{sum(arm.finished for arm in figures.values())} of {len(figures)} arms are finished."


def figure_table(study: Study, figures: Mapping[str, ArmFigures]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of all arms."""
    initial, late = study.settings.initial_steps, study.settings.late_from
    header = ["arm", "steps", f"loss, steps 1-{initial}", f"loss after step {late}", "s per step"]
    rows = [
        [
            arm.name,
            f"{figures[arm.name].step:,} of {arm.config.train.steps:,}",
            _decimals(figures[arm.name].initial_loss, 4),
            _decimals(figures[arm.name].late_loss, 4),
            _decimals(figures[arm.name].seconds_per_step, 3),
        ]
        for arm in study.arms
    ]
    return header, rows


def _note(study: Study) -> str:
    every = {arm.config.train.log_every for arm in study.arms}
    steps = "every step" if every == {1} else f"lines of {' or '.join(map(str, sorted(every)))} steps"
    return f"Means of the losses of {steps}, not smoothed; the median time of a step, without evaluations."


def _curves(study: Study, figures: Mapping[str, ArmFigures]) -> str:
    """The loss at the beginning, late and as a whole, and a chart for every score."""
    initial, late = study.settings.initial_steps, study.settings.late_from
    parts = {
        f"loss, steps 1 to {initial}": (0.0, float(initial)),
        f"loss after step {late}": (float(late), math.inf),
        "loss": (0.0, math.inf),
    }
    cards = []
    for title, (first, last) in parts.items():
        curves = {
            name: [(step, loss) for step, loss in arm.losses if first < step <= last] for name, arm in figures.items()
        }
        cards.append(card(title, _lines(curves, title), "chart"))
    for score in _score_names(figures):
        points = {
            name: [Measured(step, value) for step, value in arm.scores[score]]
            for name, arm in figures.items()
            if score in arm.scores
        }
        cards.append(card(escape(score), bands_chart(points, label=score), "chart"))
    return grid(cards, wide=True)


def _lines(curves: Mapping[str, Points], label: str) -> str:
    """Curves of which each has steps of its own."""
    thinned = {name: dict(averaged(points)) for name, points in curves.items()}
    steps = sorted({step for points in thinned.values() for step in points})
    values = {name: [points.get(step, math.nan) for step in steps] for name, points in thinned.items()}
    return lines_chart(steps, values, label=label)


def _scores(figures: Mapping[str, ArmFigures]) -> str:
    """A table of what was measured while the arms trained; empty if nothing was."""
    rows = []
    for score in _score_names(figures):
        for name, arm in figures.items():
            points = arm.scores.get(score, ())
            if points:
                (first, at_first), (last, at_last) = points[0], points[-1]
                rows.append(
                    [score, name, f"{at_first:.4f}", f"{first:.0f}", f"{at_last:.4f}", f"{last:.0f}", str(len(points))]
                )
    header = ["figure", "arm", "first", "at step", "last", "at step", "measured"]
    return table(header, rows, text_columns=2, caption="Measured while the arms trained") if rows else ""


def _score_names(figures: Mapping[str, ArmFigures]) -> list[str]:
    """The names of all that was measured, in its order."""
    return list(dict.fromkeys(name for arm in figures.values() for name in arm.scores))


def _commands(arms: tuple[Arm, ...]) -> str:
    return "".join(card(escape(arm.name), f"<pre>{escape(arm.command_line)}</pre>", "chart") for arm in arms)


def _decimals(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""
