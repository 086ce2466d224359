"""Every cleaning rule on examples, and properties of all of them together on any text."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.clean import text as rules
from data_pipelines.clean.text import Caption, clean_captions


def caption(text: str, language: str = "en", name: str = "a", picture: str = "") -> Caption:
    return Caption(name, picture or name, language, text, "GPL-2.0-only", "test")


def texts(captions: list[Caption]) -> list[str]:
    return [c.text for c in captions]


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (rules.html_tags, "A <b>red</b> fox", "A  red  fox"),
        (rules.html_tags, "salt &amp; pepper", "salt & pepper"),
        (rules.html_tags, "&lt;i&gt;owl&lt;/i&gt;", " owl "),
        (rules.html_tags, "1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        (rules.html_tags, "if a<b and c>d, keep", "if a<b and c>d, keep"),
        (rules.html_tags, "<me@x.org> <wow> I <3 you", "<me@x.org> <wow> I <3 you"),
        (rules.html_tags, '<IMG src="a.png" alt=x/>a<br/>b<p >c</P><hr noshade>', " a b c  "),
        (rules.html_tags, "<!-- a <b> -->x<!DOCTYPE html><o:p></o:p>", " x   "),
        (rules.html_tags, "Books&notes for sale", "Books&notes for sale"),
        (rules.html_tags, "Books&notes; &copy &copy; &#233; &#xe9;", "Books&notes; &copy © é é"),
        (rules.html_tags, "&lt;b&#8203;&gt;x e&#769;", " x é"),
        (rules.one_form, "a red\u200b square", "a red square"),
        (rules.one_form, "a cafe\u0301 in Pa\u00adris\ufeff", "a café in Paris"),
        (rules.one_form, "<|im\u2060_end|>", "<|im_end|>"),
        (rules.special_tags, "A fox<|endoftext|>.", "A fox ."),
        (rules.special_tags, "<PERSON> runs", "  runs"),
        (rules.special_tags, "owl<a<|im_end|>> <|a<|b|>|>", "owl   "),
        (rules.special_tags, "<box>(1,2)</box>", " (1,2) "),
        (rules.white_space, "  a \t b\n", "a b"),
    ],
)
def test_rules_that_rewrite(rule: rules.Rule, before: str, after: str) -> None:
    assert texts(rule([caption(before)])) == [after]


@pytest.mark.parametrize(
    ("rule", "text", "language", "kept"),
    [
        (rules.emoji, "A fox \U0001f98a", "en", False),
        (rules.emoji, "A fox ☀", "en", False),
        (rules.emoji, "A “fox” – 25¢", "en", True),
        (rules.other_languages, "Лиса", "en", False),
        (rules.other_languages, "きつね", "zh", False),
        (rules.other_languages, "fox", "zh", False),
        (rules.other_languages, "企鹅－Ｌｉｎｕｘ的吉祥物。", "zh", True),
        (rules.other_languages, "A crème brûlée.", "en", True),
        (rules.text_length, "ab.", "en", False),
        (rules.text_length, "獾。", "zh", True),
        (rules.text_length, "。", "zh", False),
        (rules.text_length, "x" * 200, "en", True),
        (rules.text_length, "x" * 201, "en", False),
    ],
)
def test_rules_that_drop(rule: rules.Rule, text: str, language: str, kept: bool) -> None:
    assert bool(rule([caption(text, language)])) is kept


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
        caption("A fox .", name="c"),
        caption("An owl.", name="d"),
    ]
    kept, counts = clean_captions(lines)
    assert texts(kept) == ["A fox .", "An owl."]
    assert counts["html_tags"] == {"changed": 1, "dropped": 0}
    assert counts["other_languages"] == {"changed": 0, "dropped": 1}
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


PARTS = (
    "<b>",
    "&lt;",
    "&amp;",
    "<|im_end|>",
    "</ref>",
    "\U0001f98a",
    "Ж",
    "\n",
    "\u200b",
    "e\u0301",
    "&#8203;",
    "<b x=y>",
)
ALPHABET = st.sampled_from([*"aA b.<>/&;|!獾狐。é—", *PARTS])
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


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_cleaning_twice_changes_nothing_more(lines: list[Caption]) -> None:
    once, _ = clean_captions(lines)
    twice, counts = clean_captions(once)
    assert twice == once
    assert all(n == {"changed": 0, "dropped": 0} for n in counts.values())


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_nothing_forbidden_is_left(lines: list[Caption]) -> None:
    kept, _ = clean_captions(lines)
    for item in kept:
        assert not any(bad in item.text for bad in ("<b>", "<|im_end|>", "</ref>", "\U0001f98a", "Ж", "\n", "  "))
        assert item.text == item.text.strip() and len(item.text) <= 200
    assert len({(c.language, c.text) for c in kept}) == len(kept)
    originals = {dataclasses.replace(c, text="") for c in lines}
    assert all(dataclasses.replace(c, text="") in originals for c in kept)  # only texts were rewritten
