"""CLIP's tokenizer against OpenCLIP's ids (golden) and the one of transformers (generated texts)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.scoring.clip_tokenizer import END, START, ClipTokenizer, clean
from tests.scoring.clip_files import GOLDEN, VOCABULARY


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer.load(VOCABULARY)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The slow tokenizer of transformers with the same merges."""
    folder = tmp_path_factory.mktemp("clip")
    lines = VOCABULARY.read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:], ""]))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    words = [*characters, *(f"{c}</w>" for c in characters), *(line.replace(" ", "") for line in lines[1:]), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=END, bos_token=START, eos_token=END
    )


def test_the_ids_are_those_of_openclip(tokenizer: ClipTokenizer) -> None:
    golden = json.loads((GOLDEN / "tokens.json").read_text())
    assert len(golden) > 25
    for text, expected in golden:
        ids = tokenizer.encode(text)
        assert ids + [0] * (77 - len(ids)) == expected, text


@given(st.text(st.characters(codec="utf-8", exclude_characters="&<"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_ids_are_those_of_transformers(tokenizer: ClipTokenizer, theirs: CLIPTokenizer, text: str) -> None:
    # Both read the cleaned text, because transformers cleans without HTML entities.
    cleaned = clean(text)
    if clean(cleaned) != cleaned:
        return
    byte_words = ("".join(map(theirs.byte_encoder.get, word.encode())) for word in theirs.pat.findall(cleaned))
    tokens = [token for word in byte_words for token in theirs.bpe(word).split(" ")]
    expected = [theirs.convert_tokens_to_ids(token) for token in tokens]
    assert tokenizer.encode(cleaned)[1:-1] == expected[:75]


@given(st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_every_text_begins_and_ends_and_fits(tokenizer: ClipTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert 2 <= len(ids) <= 77
    assert (ids[0], ids[-1]) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_a_cut_text_keeps_its_end() -> None:
    short = ClipTokenizer.load(VOCABULARY, context=5)
    whole = ClipTokenizer.load(VOCABULARY).encode("one two three four five six")
    assert short.encode("one two three four five six") == [*whole[:4], whole[-1]]


def test_a_lone_surrogate_is_read_as_a_replacement(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode("a \ud800 b") == tokenizer.encode("a \ufffd b")


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; copy bpe_simple_vocab_16e6.txt.gz"):
        ClipTokenizer.load(tmp_path / "nowhere")
    damaged = (b"version\na b c\n", b"\xff\xfe\n\xff\n", gzip.compress(b"x")[:-4], b"v\nqqq zzz\n")
    for number, payload in enumerate(damaged):
        path = tmp_path / str(number)
        path.write_bytes(payload)
        with pytest.raises(UserError, match="is not a vocabulary of CLIP"):
            ClipTokenizer.load(path)
