"""PTB tokens against pycocoevalcap, which runs Stanford's PTBTokenizer in Java."""

from __future__ import annotations

import html.entities
import itertools
import random
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.evaluation.metrics.cider import ptb_tokens
from qwenvl_jax.evaluation.metrics.ptb import characters, tokenizer
from tests.support import caption_cases

# 1,500 captions of seed "golden" with the tokens of pycocoevalcap 1.2 (stanford-corenlp 3.4.1, Java 17).
GOLDEN = Path(__file__).parents[2] / "golden" / "metrics" / "ptb_tokens.tsv"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the official tokenizer needs java")


def official(captions: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens of pycocoevalcap. A caption "x" between any two keeps their figures from depending on each other."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8 -Dstdout.encoding=UTF-8")
    groups = {number: [{"caption": text}, {"caption": "x"}] for number, text in enumerate(captions)}
    tokenised = PTBTokenizer().tokenize(groups)
    assert all(group[1] == "x" for group in tokenised.values())
    return [tokenised[number][0] for number in range(len(captions))]


def differences(captions: list[str], expected: list[str]) -> list[tuple[str, str, str]]:
    pairs = zip(captions, expected, strict=True)
    return [(text, true, ptb_tokens(text)) for text, true in pairs if ptb_tokens(text) != true]


def test_tokens_are_those_of_the_golden_file() -> None:
    draw = random.Random("golden")
    captions = [draw.choice((caption_cases.caption, caption_cases.noise))(draw) for _ in range(1500)]
    lines = GOLDEN.read_text(encoding="utf-8").split("\n")[:-1]
    pairs = [line.split("\t") for line in lines]
    assert [pair[0] for pair in pairs] == captions, "the captions are no longer those of the file"
    assert differences(captions, [pair[1] for pair in pairs]) == []


@needs_java
def test_tokens_of_6000_captions_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random("captions")
    captions = [draw.choice((caption_cases.caption, caption_cases.noise))(draw) for _ in range(6000)]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
def test_tokens_of_6000_mixtures_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random("mixtures")
    captions = [caption_cases.mixture(draw) for _ in range(6000)]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
@pytest.mark.slow
def test_tokens_of_100000_mixtures_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random("more mixtures")
    captions = [caption_cases.mixture(draw) for _ in range(100_000)]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
@pytest.mark.slow
def test_all_short_words_with_a_period_or_an_apostrophe_are_treated_as_officially(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to three letters: abbreviations, clipped words, names with an apostrophe, endings of files and entities."""
    letters = string.ascii_lowercase
    words = ["".join(word) for count in (1, 2, 3) for word in itertools.product(letters, repeat=count)]
    captions = [f"{word}. b {word.title()}. 5 '{word} \u2019{word} 2.{word} a &{word}; b {word}-" for word in words]
    captions += [f"{first}'{last} {first.upper()}'{last}" for first in words if len(first) < 3 for last in letters]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
@pytest.mark.slow
def test_entities_are_treated_as_officially(monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted({name.rstrip(";") for name in html.entities.html5})
    captions = [f"x&{each};y z" for name in names for each in {name, name.lower(), name.upper()}]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
@pytest.mark.slow
def test_tokens_of_100000_captions_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random("more captions")
    captions = [draw.choice((caption_cases.caption, caption_cases.noise))(draw) for _ in range(100_000)]
    assert differences(captions, official(captions, monkeypatch)) == []


@needs_java
@pytest.mark.slow
def test_every_character_alone_and_in_a_word_is_treated_as_officially(monkeypatch: pytest.MonkeyPatch) -> None:
    line_breaks = "\n\r\v\f\u2028\u2029"
    letters = [chr(code) for code in range(1, 0xFFFF) if not 0xD800 <= code < 0xE000 and chr(code) not in line_breaks]
    captions = [f"{letter} a{letter}b" for letter in letters]
    differing = differences(captions, official(captions, monkeypatch))
    # Python and Java 17 know different versions of Unicode, so the small letter of a young capital may differ.
    assert [text for text, true, ours in differing if true.casefold() != ours.casefold()] == []
    assert len(differing) < 20


@needs_java
def test_a_caption_does_not_depend_on_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only known difference: a single letter with a period at the end, before a caption such as "The dog"."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    pair = ["a boy in aisle B.", "The dog"]
    assert PTBTokenizer().tokenize({0: [{"caption": text} for text in pair]})[0] == ["a boy in aisle b", "the dog"]
    assert [ptb_tokens(text) for text in pair] == ["a boy in aisle b.", "the dog"]
    assert official(pair, monkeypatch) == ["a boy in aisle b.", "the dog"]


@pytest.mark.parametrize(
    "caption,tokens",
    [
        ("A man's grey coat (in the centre) isn't here...", "a man 's grey coat -lrb- in the centre -rrb- is n't here"),
        ("You cannot, I'm gonna!", "you can not i 'm gon na"),
        ("Mr. Smith from the U.S.", "mr. smith from the u.s."),
        ("1 1/2 cups for $5", "1\u00a01/2 cups for $ 5"),
        ("a dog \U0001f436\U0001f436", "a dog"),
        ("one\rtwo\u2028three\nfour", "one two three four"),
        ("a nor\u2019easter, a nor'easter", "a nor easter a nor'easter"),
        ("don`t don\u2018t don\u2019t", "do n`t do n`t do n't"),
        ("mfg. Mtg. pte. Pty. PTY. mfgx.", "mfg. mtg. pte. pty. pty mfgx"),
        ("e.g.,well-known.: no", "e.g.,well-known. no"),
        ("&ht; &md; &Quot; &quot; &APOS;", "&ht; &quot; &apos;"),
        ("a@b\u3000", "a@b"),
        ("a@b\u3000 c", "a@b\u3000 c"),
        ("foobar.com/\U0001f436", "foobar.com/\U0001f436"),
        ("D.\u2010B d.-b", "d. b d.-b"),
        ("723-0293\\/2 1\\/2", "723-0293\\/2 1\\/2"),
        ("......8 aisle B. The dog", ".8 aisle b the dog"),
        ("", ""),
        (" .,! ", ""),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert ptb_tokens(caption) == tokens


@given(st.text())
def test_any_text_has_tokens_without_spaces_and_punctuation(text: str) -> None:
    tokens = tokenizer.tokens(text)
    assert not set(tokens) & tokenizer.PUNCTUATION
    assert all(token and " " not in token and "\n" not in token for token in tokens)


@given(st.lists(st.sampled_from(["dog", "man's", "x-ray", "cannot", "Mr.", "cat,", "I", "don't", "end."])))
def test_remembered_chunks_have_the_tokens_of_the_whole(chunks: list[str]) -> None:
    text = " ".join(chunks)
    assert tokenizer.tokens(text) == [token for token in tokenizer.split(text) if token not in tokenizer.PUNCTUATION]


@given(st.text())
def test_kinds_have_the_length_of_the_text(text: str) -> None:
    assert len(characters.kinds(text)) == len(text)
