"""A build against an evaluation set lists every pair that it dropped; near duplicates are shown with their distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from data_pipelines.duplicates.decontaminate import PICTURE, TEXT, decontamination
from data_pipelines.duplicates.dedup import NearPictures, NearTexts
from data_pipelines.duplicates.evaluation_index import build_index, save_index
from data_pipelines.report import examples
from tests.support import small_corpus

WORDS = ("boats", "kites", "hills", "rivers", "bridges", "clouds", "horses", "lanterns", "meadows", "castles", "trains")


def scene(seed: int) -> Image.Image:
    """A picture of coarse random squares."""
    squares = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(squares).resize((240, 180), Image.Resampling.NEAREST)


def sentence(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 14))


def write(folder: Path, rows: int, per_file: int = 10) -> None:
    """Rows with a picture and a text: every third one's picture, and the next one's text, are of the evaluation set."""
    (folder / "pictures").mkdir(parents=True)
    for first in range(0, rows, per_file):
        lines = []
        for number in range(first, first + per_file):
            picture = number if number % 3 == 0 else 1000 + number
            text = number if number % 3 == 1 else 1000 + number
            scene(picture).save(folder / f"pictures/{number}.png")
            row = {"id": f"row-{number}", "text": sentence(text), "picture": f"pictures/{number}.png"}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{first:04}.jsonl").write_text("".join(lines))


def write_evaluation(folder: Path, rows: int) -> None:
    (folder / "pictures").mkdir(parents=True)
    for number in range(rows):
        scene(number).save(folder / f"pictures/{number}.jpg", quality=70)
    values = [{"id": f"e{n}", "text": sentence(n), "picture": f"pictures/{n}.jpg"} for n in range(rows)]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def recipe(run_small: Callable[..., Any], tmp_path: Path) -> Any:
    """The recipe of the small corpus with the rule on an evaluation set of 60 samples."""
    write_evaluation(tmp_path / "evaluation", 60)
    run_small(tmp_path / "evaluation", tmp_path / "records", across=())
    save_index(build_index([(tmp_path / "records/caption", "train")]), tmp_path / "index")
    return (*small_corpus.RECIPE, decontamination(tmp_path / "index"))


def test_every_pair_that_is_close_to_evaluation_data_is_listed(
    recipe: Any, run_small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "corpus", 60)
    monkeypatch.setattr(examples, "DECONTAMINATED_SHOWN", 25)
    manifest = run_small(tmp_path / "corpus", tmp_path / "output", recipe=recipe, across=())
    listed = lines(tmp_path / "output/report/decontaminated.jsonl")
    expected = [n for n in range(60) if n % 3 != 2]
    assert [row["id"] for row in listed] == [f"row-{n}" for n in expected]
    assert [(row["file"], row["row"]) for row in listed] == [(f"{n // 10 * 10:04}.jsonl", n % 10) for n in expected]
    for number, row in zip(expected, listed, strict=True):
        (evidence,) = row["evidence"]
        assert evidence["evaluation"] == f"small/e{number}"
        if number % 3 == 0:
            assert row["reason"] == PICTURE and 0 <= evidence["distance"] <= 44
            assert evidence["picture"] and evidence["evaluation_picture"]
        else:
            assert row["reason"] == TEXT and evidence["similarity"] == 1
    (counts,) = (rule for rule in manifest["rules"] if rule["rule"] == "not_in_evaluation")
    assert sum(counts["dropped"].values()) == len(listed) and manifest["kept"] == 20
    page = LexborHTMLParser((tmp_path / "output/report.html").read_bytes().decode())
    (section,) = page.css("section#decontaminated")
    assert "25 of 40 pairs" in section.text() and "report/decontaminated.jsonl lists every pair" in section.text()
    assert len(section.css("article")) == 25
    captions = [caption.text() for caption in section.css("figcaption")]
    assert captions.count("evaluation picture") == captions.count("picture") == sum(n % 3 == 0 for n in expected[:25])
    assert len(page.css('section#dropped a[href="#decontaminated"]')) == 2


def test_a_retry_lists_the_same_pairs_in_the_same_order(
    recipe: Any, run_small: Callable[..., Any], contents: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    write(tmp_path / "corpus", 20)
    missing = [tmp_path / f"corpus/pictures/{number}.png" for number in (3, 4, 8)]
    payloads = [path.read_bytes() for path in missing]
    for path in missing:
        path.unlink()
    first = run_small(tmp_path / "corpus", tmp_path / "output", recipe=recipe, across=())
    assert first["failed"]["rows"] == 3
    for path, payload in zip(missing, payloads, strict=True):
        path.write_bytes(payload)
    run_small(tmp_path / "corpus", tmp_path / "output", recipe=recipe, across=(), retry=True)
    run_small(tmp_path / "corpus", tmp_path / "straight", recipe=recipe, across=())
    assert contents(tmp_path / "output") == contents(tmp_path / "straight")


def test_without_the_rule_there_is_no_list(built: Path) -> None:
    assert not (built / "report").exists()
    page = (built / "report.html").read_text()
    assert 'id="decontaminated"' not in page and "#decontaminated" not in page


def test_near_duplicates_are_shown_with_their_distance(run_small: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "pictures").mkdir(parents=True)
    scene(1).save(folder / "pictures/0.png")
    scene(1).save(folder / "pictures/1.jpg", quality=20)
    text = " ".join(sentence(seed) for seed in range(9))
    rows = [
        {"id": "a", "text": "the original", "picture": "pictures/0.png"},
        {"id": "b", "text": "the copy", "picture": "pictures/1.jpg"},
        {"id": "c", "text": text},
        {"id": "d", "text": text[5:]},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    across = (NearPictures(), NearTexts(similarity=0.5))
    run_small(folder, tmp_path / "output", across=across)
    dropped = lines(tmp_path / "output/examples/dropped.jsonl")
    assert [row["id"] for row in dropped] == ["b", "d"]
    (picture,), (similar,) = (row["evidence"] for row in dropped)
    assert picture["id"] == "a" and 0 <= picture["distance"] <= 12
    assert similar["id"] == "c" and 0.5 <= similar["similarity"] < 1
    page = LexborHTMLParser((tmp_path / "output/report.html").read_bytes().decode())
    words = "".join(node.text() for node in page.css("section#dropped article"))
    assert f"distance: {picture['distance']}" in words and f"similarity: {similar['similarity']}" in words
