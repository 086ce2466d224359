"""The quickstart's captions: which of several stay, what is counted, and properties of the whole."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.quickstart import captions as rules
from data_pipelines.quickstart.captions import Caption, clean_captions


def caption(text: str, language: str = "en", name: str = "a", picture: str = "") -> Caption:
    return Caption(name, picture or name, language, text, "GPL-2.0-only", "test")


def texts(captions: list[Caption]) -> list[str]:
    return [c.text for c in captions]


def test_the_longest_caption_of_a_picture_is_kept() -> None:
    kept = rules.keep_longest(
        [
            caption("A fox.", name="a", picture="p"),
            caption("A red fox.", name="b", picture="p"),
            caption("A big fox.", name="c", picture="p"),
            caption("狐狸。", "zh", name="a", picture="p"),
            caption("An owl.", name="d"),
        ]
    )
    assert texts(kept) == ["A red fox.", "狐狸。", "An owl."]


def test_repeated_sentences_are_kept_once() -> None:
    lines = [caption("A frog.", name="a"), caption("A frog.", name="b"), caption("A cow.", name="c")]
    assert [c.id for c in rules.repeated_sentences(lines)] == ["a", "c"]


def test_changed_and_dropped_captions_are_counted() -> None:
    lines = [
        caption("A <b>fox</b>.", name="a"),
        caption("Лиса", name="b"),
        caption("A fox.", name="c"),
        caption("An owl.", name="d"),
    ]
    kept, counts = clean_captions(lines)
    assert texts(kept) == ["A fox.", "An owl."]
    assert counts["html"] == {"changed": 1, "dropped": 0}
    assert counts["english_or_chinese"] == {"changed": 0, "dropped": 1}
    assert counts["repeated_sentences"] == {"changed": 0, "dropped": 1}
    assert sum(n["dropped"] for n in counts.values()) == len(lines) - len(kept)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a red square", "a red\u200b square"),
        ("a café in Paris", "a cafe\u0301 in Paris"),
        ("a café in Paris", "a caf&eacute; in&nbsp;Paris"),
        ("a red square", "a\u3000red&#8203; square\u200e"),
    ],
)
def test_captions_that_look_the_same_are_one_caption(first: str, second: str) -> None:
    for pair in ([first, second], [second, first]):
        captions = [caption(text, name=str(index)) for index, text in enumerate(pair)]
        kept, _ = clean_captions(captions)
        assert texts(kept) == [first]


ALPHABET = st.sampled_from([*"aA b.<>/&;|!獾狐。é—", "<b>", "&lt;", "<|im_end|>", "\U0001f98a", "Ж", "\n", "&#8203;"])
LINES = st.lists(
    st.builds(
        caption,
        text=st.lists(ALPHABET, max_size=12).map("".join),
        language=st.sampled_from(["en", "zh"]),
        name=st.sampled_from("abc"),
        picture=st.sampled_from("pq"),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_cleaning_twice_changes_nothing_more(lines: list[Caption]) -> None:
    once, _ = clean_captions(lines)
    twice, counts = clean_captions(once)
    assert twice == once
    assert all(n == {"changed": 0, "dropped": 0} for n in counts.values())
    originals = {dataclasses.replace(c, text="") for c in lines}
    assert all(dataclasses.replace(c, text="") in originals for c in once)  # only texts were rewritten
    assert len({(c.language, c.text) for c in once}) == len(once)
