"""Maps of KGeography: boxes are those of the coloured areas, names those of the catalogue."""

from __future__ import annotations

import gettext
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.corpora.table import CORPORA
from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from data_pipelines.pair import FailedRow, RawPair
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import maps

MAPS = CORPORA["kgeography"]


def pairs_of(folder: Path) -> dict[str, RawPair]:
    return {row.id: row for row in MAPS.read(folder) if isinstance(row, RawPair)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    maps.write_kgeography(tmp_path)
    return tmp_path


def test_boxes_are_the_rectangles_that_were_painted(folder: Path) -> None:
    pair = pairs_of(folder)["shire/en"]
    boxes = {region.phrase: region.boxes for region in pair.regions}
    assert boxes == {
        "North": ((10.0, 10.0, 110.0, 50.0),),
        "South": ((10.0, 60.0, 60.0, 100.0),),
        "Islands": ((80.0, 60.0, 100.0, 80.0), (80.0, 90.0, 110.0, 100.0)),  # the islet of one pixel has none
    }
    assert (pair.pictures[0].width, pair.pictures[0].height) == (130, 120)


def test_captions_name_divisions_in_one_piece_and_spans_fit(folder: Path) -> None:
    pairs = pairs_of(folder)
    assert pairs["shire/en"].texts == ("Map of Shire with North, South.",)
    assert pairs["shire/zh"].texts == ("夏尔地图，有北区、南区。",)
    for pair in pairs.values():
        for region in pair.regions:
            if region.start >= 0:
                assert pair.texts[0][region.start : region.end] == region.phrase and len(region.boxes) == 1


def test_languages_are_those_in_which_the_map_has_a_name(folder: Path) -> None:
    assert sorted(pairs_of(folder)) == ["bree/en", "shire/en", "shire/zh"]
    (folder / maps.MO).unlink()
    assert sorted(pairs_of(folder)) == ["bree/en", "shire/en"]


def test_questions_are_answered_by_the_map(folder: Path) -> None:
    pairs = pairs_of(folder)
    asked = {question.text: question.answers[0].text for question in pairs["shire/en"].questions}
    assert asked == {
        "Which place does the map show?": "Shire",
        "Which of the farthings is the largest on the map?": "North",
    }
    asked = {question.text: question.answers[0].text for question in pairs["shire/zh"].questions}
    assert asked == {"这是哪里的地图？": "夏尔", "地图上最大的区是哪一个？": "北区"}


def test_unusable_divisions_and_maps_are_failed_rows(folder: Path) -> None:
    text = (folder / "kgeography/bree.kgm").read_text()
    twice = maps.division("Twin", maps.DIVISIONS["North"][0]) + maps.division("Odd", (0, 0, 0)).replace(">0<", ">-0<")
    (folder / "kgeography/bree.kgm").write_text(text.replace("</map>", twice + "</map>"))
    (folder / "kgeography/cut.kgm").write_text(text[:200])
    (folder / "kgeography/away.kgm").write_text(text.replace("bree.png", "../../secret.png"))
    (folder / "kgeography/bomb.kgm").write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + text.partition("?>")[2])
    reasons = sorted(row.reason for row in MAPS.read(folder) if isinstance(row, FailedRow))
    assert reasons == sorted(
        ["picture missing", "not a map", "not a map", "refused name", "malformed colour"]
        + ["division not on the map"] * 2  # Atlantis, once per map
        + ["colour of two divisions"] * 2
    )
    assert "North" not in {region.phrase for region in pairs_of(folder)["bree/en"].regions}


def test_a_damaged_catalogue_is_refused_in_one_sentence(folder: Path) -> None:
    (folder / maps.MO).write_bytes(b"\xde\x12\x04\x95 cut")
    with pytest.raises(UserError, match="unpack the package again"):
        list(MAPS.read(folder))


@pytest.mark.slow
def test_the_real_maps_agree_with_their_colours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every box of the package's maps: its sides touch the division's colour, by a loop over the palette indices."""
    try:
        package = fetch_package("kgeography-data", tmp_path_factory.mktemp("cache"), maps.PATTERNS)
    except SourceUnavailable as error:
        pytest.skip(f"the package cannot be fetched: {error}")
    pairs = pairs_of(package / "usr/share")
    assert sum(name.endswith("/en") for name in pairs) > 140 and sum(name.endswith("/zh") for name in pairs) > 90
    with open(package / "usr/share/locale/zh_CN/LC_MESSAGES/kgeography.mo", "rb") as file:
        catalogue = gettext.GNUTranslations(file)
    assert catalogue.pgettext("china.kgm", "Anhui") in {region.phrase for region in pairs["china/zh"].regions}
    for pair in pairs.values():
        if not pair.id.endswith("/en"):
            continue
        indices_HW = np.asarray(Image.open(io.BytesIO(pair.pictures[0].read())))
        for region in pair.regions:
            for x1, y1, x2, y2 in (map(int, box) for box in region.boxes):
                sides = [
                    indices_HW[y1, x1:x2],
                    indices_HW[y2 - 1, x1:x2],
                    indices_HW[y1:y2, x1],
                    indices_HW[y1:y2, x2 - 1],
                ]
                assert set.intersection(*(set(side.tolist()) for side in sides)), (pair.id, region)
