"""Charts as SVG: their axes, and values that cannot be drawn."""

from __future__ import annotations

import re

from qwenvl_jax.html.charts import Bar, histogram, line_chart, lines_chart, nice_ticks, running_mean, short


def test_ticks_are_round_numbers_that_cover_the_range() -> None:
    assert nice_ticks(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    ticks = nice_ticks(3.0, 3.0, 4)
    assert ticks[0] <= 3.0 <= ticks[-1]


def test_the_running_mean_has_fewer_neighbours_at_the_ends() -> None:
    assert running_mean([1.0, 2.0, 6.0], 1) == [1.5, 3.0, 4.0]


def test_numbers_of_an_axis_are_short() -> None:
    assert [short(value) for value in (0, 1500, 0.25, 2e-4)] == ["0", "1500", "0.25", "2e-4"]
    assert [short(value) for value in (0.0, float("nan"), float("inf"))] == ["0", "nan", "inf"]


def test_values_that_are_not_finite_are_left_out() -> None:
    assert "nan" not in line_chart([0, 1, 2], [1.0, float("nan"), 2.0], color="red")
    assert "too few" in line_chart([0], [1.0], color="red")


def test_several_curves_share_axes_and_have_a_legend() -> None:
    nan = float("nan")
    curves = {"a <task>": [1.0, 2.0, 3.0], "other": [nan, 8.0, 8.0], "empty": [nan, nan, 1.0]}
    chart = lines_chart([10, 20, 30], curves, label="loss by task")
    polylines = re.findall(r'points="([^"]*)"', chart)
    assert [len(points.split()) for points in polylines] == [3, 2]
    ends = [points.split()[-1].split(",")[0] for points in polylines]
    assert ends[0] == ends[1]  # both end at the last step
    assert "a &lt;task&gt;" in chart and "empty" not in chart and "nan" not in chart
    assert re.findall(r">([0-9.]+)</text>", chart)[-3:] == ["10", "20", "30"]
    many = lines_chart([0, 1], {str(number): [1.0, 2.0] for number in range(8)}, label="many")
    assert many.count("<polyline") == 8 and many.count("dasharray") == 2
    assert len(set(re.findall(r"stroke=.*?/>", many))) == 8
    assert "too few" in lines_chart([0, 1], {"a": [nan, 1.0]}, label="one")


def test_a_histogram_shows_counts_and_what_is_over_the_limit() -> None:
    bars = [Bar(0, 4, 0), Bar(5, 9, 3), Bar(10, 10, 2, marked=1), Bar(11, 40, 5, marked=5)]
    svg = histogram(bars, 10, label="a <chart>")
    assert re.findall(r'<rect class="bar-(\w+)"', svg) == ["plain", "plain", "marked", "marked"]
    labels = re.findall(r">([^<>]+)</text>", svg)
    assert labels == ["0", "3", "5", "2", "10", "5", "over 10"]
    assert 'aria-label="a &lt;chart&gt;"' in svg


def test_an_empty_histogram_is_only_its_axis() -> None:
    svg = histogram([], 10, label="nothing")
    assert "<rect" not in svg
    assert svg.count("<line") == 1
