"""Metrics against the official scorer, hand-computed cases and a plain rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from qwenvl_jax.evaluation.metrics import cider, grounding, ocr, vqa
from qwenvl_jax.runtime.errors import UserError

CAPTIONS = [
    ("a dog on the grass", ["a dog on the grass", "a brown dog in a field"]),
    ("two red apples", ["two apples on a table", "red apples"]),
    ("a boat", ["a small boat on the water"]),
]


def test_cider_is_the_official_scorer_on_clean_text() -> None:
    predictions, references = zip(*CAPTIONS, strict=True)
    mean, each = cider.cider(predictions, references)
    expected, expected_each = Cider().compute_score(
        dict(enumerate(references)), {k: [text] for k, text in enumerate(predictions)}
    )
    assert mean == pytest.approx(expected)
    assert each == pytest.approx(expected_each)


def test_cider_of_the_reference_itself_is_ten_over_the_shared_ngrams() -> None:
    # One reference each, all words distinct: cosine 1 for n = 1..4, times ten.
    mean, _ = cider.cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]])
    assert mean == pytest.approx(10.0)


def test_simple_tokens_ignore_case_and_punctuation_and_split_chinese() -> None:
    assert cider.simple_tokens("A dog's ball, (red)!") == "a dog's ball red"
    assert cider.simple_tokens("图里有2只猫。") == "图 里 有 2 只 猫"


def test_ptb_tokenisation_is_the_default_and_agrees_on_plain_words() -> None:
    predictions, references = zip(*CAPTIONS, strict=True)
    by_default = cider.cider(predictions, references)
    assert by_default == cider.cider(predictions, references, tokenisation="ptb")
    assert by_default[0] == pytest.approx(cider.cider(predictions, references, tokenisation="simple")[0])


def test_the_figure_says_which_tokeniser_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_jax.evaluation.benchmarks.held_out import caption

    monkeypatch.setenv("PATH", "")  # no java
    rows = [{"prediction": said, "references": true} for said, true in CAPTIONS]
    assert set(caption.score(rows)) == {"caption_cider_ptb"}
    assert set(caption.score(rows, "simple")) == {"caption_cider"}
    with pytest.raises(UserError, match="not one of ptb, simple"):
        caption.score(rows, "pbt")


@pytest.mark.parametrize("predictions,references", [(["a"], []), ([], []), (["a"], [[]])])
def test_cider_needs_a_reference_for_every_caption(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(UserError, match="image"):
        cider.cider(predictions, references)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("yes", "yes"),
        ("Two dogs", "2 dogs"),
        ("The red, car.", "red car"),
        ("dont", "don't"),
        ("none", "0"),
        ("1,000", "1000"),  # digit-comma-digit: the comma is dropped, not spaced
        ("red/blue", "red blue"),  # glued marks become a space
        ("red / blue", "red blue"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("someone'dve", "someone'd've"),
        ("yalld've", "yalld've"),  # two apostrophes missing: left alone
        ("shes", "shes"),  # not in the evaluator's list
        ("somebody'd", "somebodyd"),  # in its list the wrong way round
    ],
)
def test_normalisation_of_answers(text: str, expected: Any) -> None:
    assert vqa.normalise_words(vqa.strip_punctuation(text)) == expected


def test_period_removal_stops_after_thirty_two() -> None:
    assert vqa.strip_punctuation("a." * 40) == "a" * 32 + "a." * 8


@pytest.mark.parametrize(
    "prediction,answers,expected",
    [
        ("2", ["2"] * 10, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("dog", ["dog"] * 3 + ["cat"] * 7, (3 * 2 / 3 + 7 * 1.0) / 10),
        ("dog", ["dog"] + ["cat"] * 9, 9 * (1 / 3) / 10),
        ("dog", ["cat"] * 10, 0.0),
        # All annotators agree, so their answer keeps its comma and can never match a normalised prediction.
        ("red, blue", ["red, blue"] * 10, 0.0),
        ("red, blue", ["red, blue"] * 9 + ["red"], (9 * 1.0 + 1 * 1.0) / 10),
        # Ground truths are never lower-cased.
        ("dog", ["Dog"] * 9 + ["dog"], 9 * (1 / 3) / 10),
    ],
)
def test_vqa_score(prediction: str, answers: Any, expected: Any) -> None:
    assert vqa.vqa_score(prediction, answers) == pytest.approx(expected)


def test_exact_accuracy_strips_and_lowers() -> None:
    assert vqa.exact_accuracy(" Red ", ["red", "blue"]) == 1.0
    assert vqa.exact_accuracy("redd", ["red", "blue"]) == 0.0


@pytest.mark.parametrize(
    "text,expected",
    [
        ("(0,0),(999,999)</box>", (0, 0, 200, 100)),
        ("(100,200),(300,400)<|endoftext|>(5,6),(7,8)", (20.02, 20.02, 60.06, 40.04)),
        ("(1,2)", (0, 0, 0, 0)),
        ("(a,b),(c,d)", (0, 0, 0, 0)),
        ("(1 2),(3,4)", (0, 0, 0, 0)),
        ("(1,2,3),(3,4)", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_first_box_in_pixels(text: str, expected: Any) -> None:
    assert grounding.parse_first_box(text, 200, 100) == pytest.approx(expected, abs=0.01)


def test_intersection_over_union() -> None:
    assert grounding.intersection_over_union((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert grounding.intersection_over_union((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert grounding.intersection_over_union((10, 10, 0, 0), (0, 0, 10, 10)) == 0.0
    assert grounding.referring_accuracy([0.5, 0.49999]) == 0.5
    assert grounding.referring_accuracy([]) == 0.0


def _distance(a: str, b: str) -> int:
    """Levenshtein by the textbook table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return int(table[-1, -1])


@given(
    st.lists(st.tuples(st.text("ab猫", max_size=6), st.text("ab猫", min_size=1, max_size=6)), min_size=1, max_size=4)
)
def test_character_accuracy_is_micro_averaged(pairs: list[tuple[str, str]]) -> None:
    result = ocr.character_accuracy(([a], [b]) for a, b in pairs)
    edits, characters = sum(_distance(a, b) for a, b in pairs), sum(len(b) for _, b in pairs)
    assert (result.edits, result.characters) == (edits, characters)
    assert result.accuracy == max(0, 1 - edits / characters)


def test_lines_count_in_reading_order() -> None:
    assert ocr.character_accuracy([(["ab", "cd"], ["ab", "cd"])]).accuracy == 1
    assert ocr.character_accuracy([(["cd", "ab"], ["ab", "cd"])]).accuracy < 1
    assert ocr.character_accuracy([]).accuracy == 0
