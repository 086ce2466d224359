"""Charts of the countries of the world with questions about them, in the form of ChartQA.

The numbers are those of Unicode's CLDR (package `unicode-cldr-core`, Unicode-DFS-2016): population, gross domestic
product and literacy of every country. Answers follow from the values as the chart writes them.
"""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from data_pipelines.debian.benchmarks.chart_drawing import KINDS, Chart, draw_chart
from data_pipelines.debian.benchmarks.files import png, write_bytes, write_json
from data_pipelines.debian.manuals import fonts_of
from data_pipelines.fetch.apt import SourceUnavailable, fetch_package

PACKAGE = "unicode-cldr-core"
LICENSE = "Unicode-DFS-2016"
CHARTS = 300
_ROOT = "usr/share/unicode/cldr/common"
_NUMBERS = f"{_ROOT}/supplemental/supplementalData.xml"
_NAMES = f"{_ROOT}/main/en.xml"
_WINDOW = 24  # countries of similar size, of which a chart shows some
_LABELS = (4, 8)  # the fewest and the most countries of a chart


class Measure(NamedTuple):
    """A number of every country: its attribute in CLDR, its title, its unit and the digits after its point."""

    attribute: str
    title: str
    unit: Decimal
    digits: int


MEASURES = (
    Measure("population", "Population, in millions", Decimal(10**6), 1),
    Measure("gdp", "Gross domestic product, in billions of dollars", Decimal(10**9), 0),
    Measure("literacyPercent", "Literacy, in per cent", Decimal(1), 1),
)

# Country -> attribute -> number.
Countries = dict[str, dict[str, Decimal]]


def countries(cache: Path) -> Countries:
    """The numbers of all countries by their English names.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    folder = fetch_package(PACKAGE, cache, (_NUMBERS, _NAMES, "usr/share/doc/*/copyright"))
    try:
        return parsed((folder / _NUMBERS).read_text("utf-8"), (folder / _NAMES).read_text("utf-8"))
    except (ET.ParseError, OSError) as error:
        raise SourceUnavailable(f"{PACKAGE} is damaged ({error})") from None


def parsed(numbers: str, names: str) -> Countries:
    """The countries from the two files of CLDR."""
    english: dict[str, str] = {}
    for element in ET.fromstring(names).iter("territory"):
        code = element.get("type", "")
        if code.isalpha() and element.text and "alt" not in element.attrib:
            english[code] = element.text
    table: Countries = {}
    for element in ET.fromstring(numbers).iter("territory"):
        name = english.get(element.get("type", ""))
        values = {measure.attribute: element.get(measure.attribute, "") for measure in MEASURES}
        if name and all(value.replace(".", "", 1).isdecimal() for value in values.values()):
            table[name] = {key: Decimal(value) for key, value in values.items()}
    return table


def chart_of(table: Countries, number: int, draw: random.Random) -> Chart:
    """Chart `number`: some countries that are near to one another in one measure, all with different values.

    Args:
      table: at least two countries with different values.
      number: chooses the measure and the kind of chart.
      draw: the source of chance.
    """
    measure = MEASURES[number % len(MEASURES)]
    kinds = KINDS if measure.unit > 1 else KINDS[:2]  # shares of countries do not add up to a pie
    named: dict[str, list[str]] = {}
    for name in sorted(table):
        named.setdefault(_written(table[name][measure.attribute], measure), []).append(name)
    ranked = sorted((value for value in named if Decimal(value) > 0), key=Decimal)
    first = draw.randint(0, max(0, len(ranked) - _WINDOW))
    window = ranked[first : first + _WINDOW]
    values = draw.sample(window, k=min(len(window), draw.randint(*_LABELS)))
    labels = tuple(draw.choice(named[value]) for value in values)
    return Chart(kinds[number // len(MEASURES) % len(kinds)], measure.title, labels, tuple(values))


def _written(number: Decimal, measure: Measure) -> str:
    return str(round(number / measure.unit, measure.digits))


def lookups(chart: Chart, draw: random.Random) -> list[tuple[str, str]]:
    """Questions that are answered by one value or label of a chart."""
    numbers = [Decimal(value) for value in chart.values]
    what = chart.title[0].lower() + chart.title[1:]
    asked = draw.sample(list(zip(chart.labels, chart.values, strict=True)), k=2)
    questions = [(f"What is the {what}, of {label}?", value) for label, value in asked]
    questions.append(("Which country has the highest value?", chart.labels[numbers.index(max(numbers))]))
    questions.append(("Which country has the lowest value?", chart.labels[numbers.index(min(numbers))]))
    return questions


def calculations(chart: Chart, draw: random.Random) -> list[tuple[str, str]]:
    """Questions that need several values of a chart."""
    numbers = [Decimal(value) for value in chart.values]
    first, second = draw.sample(range(len(numbers)), k=2)
    threshold = sorted(numbers)[len(numbers) // 2]
    above = sum(number > threshold for number in numbers)
    return [
        ("How many countries does the chart show?", str(len(numbers))),
        ("What is the difference between the highest and the lowest value?", str(max(numbers) - min(numbers))),
        (
            f"What is the sum of the values of {chart.labels[first]} and {chart.labels[second]}?",
            str(numbers[first] + numbers[second]),
        ),
        (f"How many countries have a value above {threshold}?", str(above)),
    ]


def write_charts(cache: Path, folder: Path, count: int = CHARTS, seed: int = 0) -> None:
    """Writes charts with their questions: calculations as human ones, look-ups as augmented ones.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    table = countries(cache)
    fonts = [font for font in fonts_of("en", cache) if "DejaVu" in font.name] or fonts_of("en", cache)
    draw = random.Random(seed)
    human: list[dict[str, str]] = []
    augmented: list[dict[str, str]] = []
    for number in range(count):
        chart = chart_of(table, number, draw)
        name = f"{number:05}.png"
        write_bytes(folder / "test" / "png" / name, png(draw_chart(chart, draw.choice(fonts))))
        human += _rows(name, calculations(chart, draw))
        augmented += _rows(name, lookups(chart, draw))
    write_json(folder / "test" / "test_human.json", human)
    write_json(folder / "test" / "test_augmented.json", augmented)


def _rows(name: str, asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"imgname": name, "query": text, "label": answer} for text, answer in asked]
