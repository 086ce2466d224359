"""Charts as SVG: their axes, and values that cannot be drawn."""

from __future__ import annotations

import math
import re

from qwenvl_jax.html.charts import (
    Bar,
    Measured,
    Step,
    bands_chart,
    funnel,
    histogram,
    line_chart,
    lines_chart,
    nice_ticks,
    running_mean,
    short,
    short_count,
)


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


def test_a_funnel_shows_what_is_left_and_what_is_removed() -> None:
    svg = funnel([Step("all <rows>", 1000), Step("a rule", 750, 250), Step("x" * 50, 0, 750)], label="rules")
    widths = [float(width) for width in re.findall(r'<rect class="bar-\w+" x="[0-9.]+" y="\d+" width="([0-9.]+)"', svg)]
    assert widths[0] == widths[1] + widths[2] and widths[1] == 3 * widths[2] == widths[3]
    assert re.findall(r'<rect class="bar-(\w+)"', svg) == ["plain", "plain", "marked", "marked"]
    assert "all &lt;rows&gt;" in svg and "x" * 33 not in svg
    assert re.findall(r">([0-9,]+(?: \(-[0-9,]+\))?)</text>", svg) == ["1,000", "750 (-250)", "0 (-750)"]
    assert "<rect" not in funnel([], label="nothing")


def test_large_counts_are_short() -> None:
    counts = (0, 9999, 10_000, 123_456, 999_999, 1_000_000, 1_250_000, 5_000_000_000, 123_000_000_000)
    assert list(map(short_count, counts)) == ["0", "9999", "10k", "123k", "999k", "1.0M", "1.2M", "5.0B", "123B"]


def test_a_bar_may_have_a_label() -> None:
    assert "3:4&lt;" in histogram([Bar(0, 1, 2, label="3:4<")], 10, label="ratio")


def test_the_last_label_stays_within_the_chart() -> None:
    bars = [Bar(number, number + 1, 1, label=f"{number:06d}") for number in range(22)]
    (last,) = re.findall(r"<text ([^>]*)>000021</text>", histogram(bars, 99, label="many"))
    assert 'text-anchor="end"' in last


def test_bands_are_drawn_around_measured_curves() -> None:
    points = [Measured(0, 1.0, 0.5, 1.5), Measured(5, 2.0), Measured(10, 3.0, 2.0, 4.0), Measured(20, math.nan)]
    svg = bands_chart({"a <run>": points, "single": [Measured(0, 1.0, 0.0, 2.0)]}, label="a & b")
    (band,) = re.findall(r'<polygon points="([^"]+)"', svg)
    corners = [tuple(map(float, pair.split(","))) for pair in band.split()]
    assert len(corners) == 4 and corners[0][0] == corners[3][0] and corners[1][0] == corners[2][0]
    assert corners[0][1] < corners[3][1] and corners[1][1] < corners[2][1]  # the high edge is above the low one
    assert svg.count("<circle") == 3
    assert "a &lt;run&gt;" in svg and "single" not in svg and 'aria-label="a &amp; b"' in svg
    assert "<svg" not in bands_chart({"single": points[:1]}, label="none")
    assert "<polygon" not in bands_chart({"plain": [Measured(0, 1.0), Measured(1, 2.0)]}, label="no intervals")
