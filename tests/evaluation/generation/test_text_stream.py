"""Pieces of an answer: whole characters, whole tags, and nothing lost."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.config import Config
from qwenvl_jax.data import tags
from qwenvl_jax.data.tokenizer import QwenTokenizer, Tokenizer
from qwenvl_jax.evaluation.generation.generate import Generator, Request
from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling
from qwenvl_jax.evaluation.generation.text_stream import TextStream
from qwenvl_jax.models.loaded import LoadedModel

BYTES = QwenTokenizer({bytes([value]): value for value in range(256)})  # every id is one byte
TAG_NAMES = (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS)
SPECIALS = [BYTES.special_by_name[name] for name in TAG_NAMES]

ids_of_text = st.lists(st.sampled_from([*"a <b>狗🐕é", *TAG_NAMES])).map(lambda parts: list("".join(parts).encode()))
some_ids = st.lists(st.one_of(st.sampled_from(SPECIALS), st.integers(0, 255)), max_size=30)


def pieces_of(ids: list[int], cuts: set[int]) -> list[str]:
    stream = TextStream(BYTES)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    pieces = [stream.add(ids[start:end]) for start, end in itertools.pairwise(bounds)]
    return [*pieces, stream.end()]


@given(st.one_of(ids_of_text, some_ids), st.sets(st.integers(1, 80)))
def test_the_pieces_are_the_text(ids: list[int], cuts: set[int]) -> None:
    assert "".join(pieces_of(ids, cuts)) == BYTES.decode(ids)


@given(ids_of_text, st.sets(st.integers(1, 80)))
def test_no_piece_breaks_a_character_or_a_tag(ids: list[int], cuts: set[int]) -> None:
    pieces = pieces_of(ids, cuts)
    assert not any("\ufffd" in piece for piece in pieces)
    whole = "".join(pieces)
    ends = {len("".join(pieces[:count])) for count in range(len(pieces))}
    for name in TAG_NAMES:
        for match in re.finditer(re.escape(name), whole):
            assert not ends & set(range(match.start() + 1, match.end())), (name, pieces)


def test_plain_text_is_not_held_back() -> None:
    stream = TextStream(BYTES)
    assert stream.add(b"3 < 4 is ") == "3 < 4 is "
    assert stream.add(b"so <") == "so "
    assert stream.add(b" not a tag") == "< not a tag"
    assert stream.add(b"<" + b"a" * 30) == "<" + "a" * 30


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=30)])
@pytest.mark.parametrize("together", [1, 3])
def test_a_stream_is_the_answer_and_its_first_token_comes_alone(
    loaded: LoadedModel, config: Config, tokenizer: Tokenizer, sampling: Sampling, together: int
) -> None:
    limits = Limits(8, stop_ids=tuple(range(30)))
    generator = Generator(loaded, 1)
    lengths = set()
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, tokenizer.special.first, 9).astype(np.int32)
        request = Request(0, ids, np.full(9, -1, np.int32), seed=seed)
        [answer] = generator.generate([request], limits, sampling)
        parts = list(generator.stream(request, limits, sampling, together))
        assert [token for part in parts for token in part] == answer.ids
        assert all(len(part) <= together for part in parts)
        assert not parts or len(parts[0]) == 1
        lengths.add(len(answer.ids))
    assert len(lengths) > 1
