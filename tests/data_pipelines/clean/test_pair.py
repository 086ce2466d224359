"""Rules on scores and languages that a corpus states."""

from __future__ import annotations

import math

import pytest

from data_pipelines.clean.pair import language_matches, score_at_least, unsafe_at_most, watermark_at_most
from data_pipelines.pair import RawPair
from tests.support.cleaning import pair_of, verdict


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"similarity": 0.28}, ""),
        ({"similarity": 0.2799}, "similarity too low"),
        ({"similarity": math.nan}, "similarity is not a number"),
        ({"similarity": -math.inf}, "similarity too low"),
        ({}, "no similarity"),
    ],
)
def test_the_clip_score_of_the_corpus(scores: dict[str, float], expected: str) -> None:
    pair = RawPair("a", "t", "x", scores=scores)
    assert verdict(score_at_least, pair, column="similarity", least=0.28) == (expected or pair)


def test_probabilities_that_are_missing_keep_a_pair() -> None:
    pair = RawPair("a", "t", "x", scores={"pwatermark": 0.9, "punsafe": 0.1})
    assert verdict(watermark_at_most, pair, column="pwatermark", most=0.8) == "a watermark"
    assert verdict(unsafe_at_most, pair, column="punsafe", most=0.1) is pair
    assert verdict(unsafe_at_most, pair, column="other", most=0.1) is pair


def test_the_language_of_a_corpus() -> None:
    assert (
        verdict(language_matches, pair_of("a fox", language="zh"), language="en") == "stated to be in another language"
    )
    assert verdict(language_matches, pair_of("a fox 狐狸", language="zh-CN"), language="zh") == "not mainly zh"
    mixed = verdict(language_matches, pair_of("a fox", "红狐狸"), language="zh")
    assert isinstance(mixed, RawPair) and mixed.texts == ("红狐狸",)
