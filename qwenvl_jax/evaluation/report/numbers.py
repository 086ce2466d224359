"""How numbers of an evaluation are written, in Markdown as in HTML."""

from __future__ import annotations

from qwenvl_jax.evaluation.results.figures import Comparison, Figure

NOTHING = "–"
_DECIMALS = 2
_SMALLEST_P = 0.0001


def score(figure: Figure | None) -> str:
    """79.50, in the unit of papers."""
    return NOTHING if figure is None else f"{figure.value * figure.unit:.{_DECIMALS}f}"


def interval(figure: Figure | Comparison | None) -> str:
    """[79.10, 79.90], in the unit of papers."""
    if figure is None or figure.low is None or figure.high is None:
        return NOTHING
    return f"[{figure.low * figure.unit:.{_DECIMALS}f}, {figure.high * figure.unit:.{_DECIMALS}f}]"


def change(comparison: Comparison | None) -> str:
    """+1.20 [0.40, 2.00], in the unit of papers."""
    if comparison is None:
        return NOTHING
    value = f"{comparison.value * comparison.unit:+.{_DECIMALS}f}"
    return value if comparison.low is None else f"{value} {interval(comparison)}"


def p_value(comparison: Comparison | None) -> str:
    """0.03, or < 0.0001."""
    if comparison is None or comparison.p is None:
        return NOTHING
    return f"< {_SMALLEST_P}" if comparison.p < _SMALLEST_P else f"{comparison.p:.2g}"


def smallest(figure: Figure | None, comparison: Comparison | None) -> str:
    """The smallest difference that is shown: that of the comparison, otherwise that of two independent models."""
    for value in (comparison, figure):
        if value is not None and value.smallest is not None:
            return f"{value.smallest * value.unit:.{_DECIMALS}f}"
    return NOTHING


def with_count(figure: Figure | None) -> str:
    """79.50 [79.10, 79.90] of 120, for a subset."""
    return NOTHING if figure is None else f"{score(figure)} {interval(figure)} of {figure.questions:,}"


def of_paper(value: float | None) -> str:
    """As the paper prints it."""
    return NOTHING if value is None else f"{value:g}" if value < 1000 else f"{value:.2f}"


def rounded(value: float | None, decimals: int = 1) -> str:
    """A number, or a dash."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"
