"""Evaluation sets from Debian packages: every answer is true of the picture, and readers take the files as they are."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.build.benchmarks import DEBIAN
from data_pipelines.corpora.table import CORPORA
from data_pipelines.debian.__main__ import main as build_real
from data_pipelines.debian.benchmarks import charts, documents, maps, stamps
from data_pipelines.debian.benchmarks.chart_drawing import KINDS, Chart, draw_chart
from data_pipelines.debian.benchmarks.writers import benchmark_writers
from data_pipelines.fetch.apt import SourceUnavailable
from data_pipelines.pair import RawPair
from qwenvl_jax.data.readers.record_folder import RecordReader
from tests.support.corpora import maps as map_files
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture


@pytest.fixture(scope="module")
def font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TrueType font that is installed with matplotlib or with the system."""
    for folder in (Path("/usr/share/fonts"), *Path(np.__file__).parents[1].glob("matplotlib/mpl-data/fonts/ttf")):
        for path in sorted(folder.rglob("DejaVuSans.ttf")):
            return path
    pytest.skip("there is no DejaVu Sans")


def pairs(corpus: str, folder: Path, split: str = "test") -> list[RawPair]:
    rows = list(CORPORA[corpus].read(folder, split))
    assert all(isinstance(row, RawPair) for row in rows)
    return [row for row in rows if isinstance(row, RawPair)]


MEMBERS = [
    stamps.Stamp(picture(number), f"A {name}.", kind, (WIDTH, HEIGHT))
    for number, (name, kind) in enumerate(
        [("frog", "animals"), ("cat", "animals"), ("frog", "animals"), ("hat", "clothes"), ("yak\tor\nso", "animals")]
    )
]


def test_stamps_have_a_picture_on_white(tmp_path: Path) -> None:
    root = tmp_path / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    root.mkdir(parents=True)
    Image.new("RGBA", (90, 60), (10, 200, 0, 0)).save(root / "frog.png")
    (root / "frog.txt").write_text("A frog.\nzh_CN.utf8=一只青蛙。\n")
    (root / "cat.svg").write_text("<svg/>")
    (root / "cat.txt").write_text("A cat.\n")
    (english,) = stamps.stamps(tmp_path, "en")
    assert (english.sentence, english.kind, english.side) == ("A frog.", "animals", (90, 60))
    assert Image.open(io.BytesIO(english.picture)).convert("L").getextrema() == (255, 255)
    assert [stamp.sentence for stamp in stamps.stamps(tmp_path, "zh")] == ["一只青蛙。"]


def test_captions(tmp_path: Path) -> None:
    stamps.write_captions(MEMBERS, tmp_path)
    read = pairs("debian_captions", tmp_path)
    assert [(pair.number, pair.texts, pair.category) for pair in read] == [
        (str(number), (stamp.sentence,), stamp.kind) for number, stamp in enumerate(MEMBERS)
    ]
    assert [pair.pictures[0].read() for pair in read] == [stamp.picture for stamp in MEMBERS]


def test_choices_are_right_in_every_rotation(tmp_path: Path) -> None:
    stamps.write_choices(MEMBERS, tmp_path)
    read = pairs("debian_choices", tmp_path)
    assert [pair.pictures[0].encoded for pair in read] == [stamp.picture for stamp in MEMBERS]
    for pair, stamp in zip(read, MEMBERS, strict=True):
        assert len(pair.questions) == 4 and {question.group for question in pair.questions} == {pair.id}
        assert {question.right for question in pair.questions} == {0, 1, 2, 3}
        for question in pair.questions:
            assert question.choices[question.right] == stamp.sentence.strip()
            assert len(set(question.choices)) == 4
            assert (
                question.choices
                == pair.questions[0].choices[pair.questions.index(question) :]
                + (pair.questions[0].choices[: pair.questions.index(question)])
            )


DRAWS = st.randoms(use_true_random=False)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12), st.integers(0, 5), DRAWS)
def test_other_sentences_are_of_other_pictures(names: list[str], count: int, draw: random.Random) -> None:
    members = [stamps.Stamp(b"", name, "vowel" if name in "ae" else "consonant", (1, 1)) for name in names]
    chosen = stamps.others(members, 0, count, draw)
    assert len(set(chosen)) == len(chosen) == min(count, len(set(names)) - 1)
    assert names[0] not in chosen


def test_yes_and_no_are_one_line_each(tmp_path: Path) -> None:
    stamps.write_yes_no(MEMBERS, tmp_path)
    read = pairs("debian_yes_no", tmp_path)
    assert len(read) == len(MEMBERS)
    for pair, stamp in zip(read, MEMBERS, strict=True):
        yes, no = pair.questions
        sentence = " ".join(stamp.sentence.split())
        assert yes.answers[0].text == "Yes" and sentence in yes.text
        assert no.answers[0].text == "No" and sentence not in no.text


@pytest.fixture(scope="module")
def shire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`usr/share` with maps of known rectangles."""
    folder = tmp_path_factory.mktemp("maps")
    map_files.write_kgeography(folder)
    return folder


def test_phrases_have_the_boxes_of_the_colours(shire: Path, tmp_path: Path) -> None:
    maps.write_phrases(maps.maps(shire, "en"), tmp_path)
    read = pairs("debian_phrases", tmp_path)
    assert len(read) == 2
    for pair in read:
        pixels_HWC = np.asarray(Image.open(io.BytesIO(pair.pictures[0].read())).convert("RGB"))
        assert {region.phrase for region in pair.regions} == {"North", "South"}
        for region in pair.regions:
            rows, columns = np.nonzero((pixels_HWC == map_files.DIVISIONS[region.phrase][0]).all(-1))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert region.boxes == (tuple(map(float, box)),)


def test_questions_about_maps_are_true(shire: Path, tmp_path: Path) -> None:
    maps.write_questions(maps.maps(shire, "en"), tmp_path / "gqa")
    read = pairs("debian_maps", tmp_path / "gqa")
    asked = [question for pair in read for question in pair.questions]
    assert {question.category for question in asked} == {"query", "choose"}
    for question in asked:
        side = re.match(r"Which of the two is nearer to the (\w+) of the map, North or South\?", question.text)
        if side:
            assert question.answers[0].text == {"top": "North", "bottom": "South"}[side[1]]
    maps.write_positions(maps.maps(shire, "en"), tmp_path / "mme")
    for pair in pairs("debian_yes_no", tmp_path / "mme"):
        yes, no = pair.questions
        assert "North is above South." in yes.text and "South is above North." in no.text


def test_capitals_are_those_of_the_map(tmp_path: Path) -> None:
    places = [f"Place {number}" for number in range(12)]
    divisions = [
        map_files.division(place, (number, 0, 0), f"<capital>Town {number}</capital>")
        for number, place in enumerate(places)
    ]
    divisions += [map_files.division("Same", (99, 0, 0), "<capital>Same</capital>")]
    text = f"<map><mapFile>a.png</mapFile><name>Land</name>{''.join(divisions)}</map>"
    (tmp_path / "kgeography").mkdir()
    (tmp_path / "kgeography" / "land-of.kgm").write_text(text)
    (tmp_path / "kgeography" / "small.kgm").write_text(text.replace("capital>", "town>"))
    maps.write_capitals(tmp_path, tmp_path / "exam")
    rows = [*pairs("debian_capitals", tmp_path / "exam", "dev"), *pairs("debian_capitals", tmp_path / "exam")]
    asked = [pair.questions[0] for pair in rows]
    assert len(asked) == 12 and {question.category for question in asked} == {"land_of"}
    assert len(pairs("debian_capitals", tmp_path / "exam", "dev")) == maps.EXAMPLES
    for question in asked:
        number = re.fullmatch(r"Land: what is the capital of Place (\d+)\?", question.text)
        assert number and question.answers[0].text == f"Town {number[1]}" and len(set(question.choices)) == 4


TOKENS = ["the", "Debian", "kernel", "reads", "a", "file", "12", "of", "it,", "now."]
WORDS = st.lists(st.sampled_from(TOKENS), max_size=9)


@given(st.lists(WORDS, max_size=8), DRAWS)
def test_words_that_are_asked_for_follow_once_on_the_page(lines: list[list[str]], draw: random.Random) -> None:
    text = "\r\n".join(" ".join(line) for line in lines)
    for question, answer in documents.questions_of(f"{text}\r\n5.3.5 Blacklisting modules", draw):
        if question == "What is the title of section 5.3.5?":
            assert answer == "Blacklisting modules"
            continue
        before = re.fullmatch(r'Which word follows "(.*)" on the page\?', question)
        assert before and len(before[1].split()) == 3
        assert text.replace("\r\n", " ").count(f"{before[1]} ") == 1 and f"{before[1]} {answer}" in text


NUMBERS = """<supplementalData><territoryInfo>
<territory type="AA" gdp="1" literacyPercent="90" population="1"/>{rows}
<territory type="QQ" gdp="2" literacyPercent="90.5" population="1000000"/>
<territory type="ZZ" population="5"/></territoryInfo></supplementalData>"""


def countries(count: int) -> charts.Countries:
    codes = [chr(66 + number // 20) + chr(65 + number % 20) for number in range(count)]
    rows = [
        f'<territory type="{code}" gdp="{(number + 1) * 37 * 10**8}" literacyPercent="{50 + number % 50}.{number % 7}" '
        f'population="{(number + 1) * 654321}"/>'
        for number, code in enumerate(codes)
    ]
    names = "".join(f'<territory type="{code}">Land {code}</territory>' for code in (*codes, "AA", "ZZ"))
    short = '<territory type="AA" alt="short">A</territory><territory type="001">World</territory>'
    return charts.parsed(NUMBERS.format(rows="".join(rows)), f"<ldml>{names}{short}</ldml>")


def test_numbers_are_those_of_the_files() -> None:
    table = countries(3)
    assert set(table) == {"Land AA", "Land BA", "Land BB", "Land BC"}  # not one without a name or without numbers
    assert table["Land BC"] == {"population": 1962963, "gdp": 11100000000, "literacyPercent": 52 + Fraction(2, 10)}


@given(st.integers(0, 40), DRAWS)
def test_answers_follow_from_the_values_of_the_chart(number: int, draw: random.Random) -> None:
    chart = charts.chart_of(countries(60), number, draw)
    assert len(set(chart.labels)) == len(set(chart.values)) == len(chart.labels) >= 4
    values = {label: Fraction(value) for label, value in zip(chart.labels, chart.values, strict=True)}
    answers = dict(charts.lookups(chart, draw)) | dict(charts.calculations(chart, draw))
    for question, answer in answers.items():
        named = [label for label in chart.labels if re.search(rf"\b{label}\b", question)]
        if "highest and the lowest" in question:
            assert Fraction(answer) == max(values.values()) - min(values.values())
        elif "sum of the values" in question:
            assert Fraction(answer) == sum(values[label] for label in named) and len(named) == 2
        elif "above" in question:
            threshold = Fraction(question.rsplit(" ", 1)[1].rstrip("?"))
            assert int(answer) == sum(value > threshold for value in values.values())
        elif "does the chart show" in question:
            assert int(answer) == len(values)
        elif "highest" in question or "lowest" in question:
            assert values[answer] == (max if "highest" in question else min)(values.values())
        else:
            assert Fraction(answer) == values[named[0]] and len(named) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_areas_of_a_chart_are_its_values(kind: str, font: Path) -> None:
    """The pixels of a colour are in proportion to the value that it shows."""
    chart = Chart(kind, "Population, in millions", ("One", "Two", "Three", "Four"), ("10.0", "20.0", "40.0", "30.0"))
    picture = draw_chart(chart, font)
    colours = Counter(picture.crop((0, 0, 460, 560) if kind == "pie" else None).getdata())
    shown = [colours[colour] for colour in ((78, 121, 167), (242, 142, 43), (89, 161, 79), (225, 87, 89))]
    np.testing.assert_allclose(np.array(shown) / sum(shown), [0.1, 0.2, 0.4, 0.3], atol=0.012)


def test_every_set_of_the_collection_has_a_writer(tmp_path: Path) -> None:
    assert list(benchmark_writers(tmp_path, lambda: tmp_path)) == list(DEBIAN)


def test_sets_are_the_same_every_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = [tmp_path_factory.mktemp("set") for _ in range(2)]
    for folder in folders:
        stamps.write_choices(MEMBERS, folder)
        stamps.write_yes_no(MEMBERS, folder)
    first, second = ({path.name: path.read_bytes() for path in folder.rglob("*.t*")} for folder in folders)
    assert first == second and len(first) == 1 + len(MEMBERS)


@pytest.mark.slow
def test_real_packages_become_ten_thousand_questions(tmp_path: Path) -> None:
    """About 250 MB are fetched."""
    try:
        charts.countries(tmp_path / "cache")
    except SourceUnavailable as error:
        pytest.skip(f"the packages cannot be fetched: {error}")
    build_real(["--evaluation", f"--cache={tmp_path}/cache", f"--output={tmp_path}/sets", "--workers=1"])
    counts = {}
    for name, splits in DEBIAN.items():
        for split in splits:
            manifest = json.loads((tmp_path / "sets" / f"{name}_{split}" / "manifest.json").read_text())
            assert manifest["failed"]["rows"] == 0
            counts[name] = manifest["tasks"]["evaluation"]["samples"]
            assert len(RecordReader(tmp_path / "sets" / f"{name}_{split}" / "evaluation", split))
    assert sum(counts.values()) > 10_000 and len(counts) > 6
