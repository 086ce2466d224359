"""Scores of pairs: order, batches, texts of all lengths, pictures that cannot be decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.conversion.from_openclip import load_clip
from qwenvl_jax.data.images.decode import decode_center_into
from qwenvl_jax.models import clip
from qwenvl_jax.models.clip import ClipConfig
from qwenvl_jax.models.qwen_vl import INITIALISATION
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.scoring.clip import ClipScorer, NotScored
from qwenvl_jax.scoring.clip_tokenizer import ClipTokenizer
from tests.scoring.clip_files import VOCABULARY, picture, tiny_config, write_tiny

TOKENIZER = ClipTokenizer.load(VOCABULARY)
TEXTS = ("a cat", "", "two dogs in the snow", "word " * 30, "the " * 120, "猫", "a red house on a hill, " * 3)


@pytest.fixture(scope="module")
def config() -> ClipConfig:
    return tiny_config(TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def params(config: ClipConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_clip(write_tiny(tmp_path_factory.mktemp("tiny"), config), config)


@pytest.fixture(scope="module")
def scorer(params: Any, config: ClipConfig) -> ClipScorer:
    return ClipScorer(params, config, TOKENIZER, batch_size=4)


encode_images = jax.jit(clip.encode_images, static_argnums=(1, 2))
encode_texts = jax.jit(clip.encode_texts, static_argnums=(1, 2))


def one_by_one(params: Any, config: ClipConfig, payload: bytes, texts: tuple[str, ...]) -> list[float]:
    tokens_TL = np.zeros((len(TEXTS), 77), np.int32)
    for row, text in zip(tokens_TL, texts, strict=False):
        ids = TOKENIZER.encode(text)
        row[: len(ids)] = ids
    pixels_IHWC = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    decode_center_into(payload, pixels_IHWC[0])
    image_E = encode_images(params, config, INITIALISATION, pixels_IHWC)[0]
    texts_TE = encode_texts(params, config, INITIALISATION, tokens_TL)
    return np.asarray(texts_TE @ image_E)[: len(texts)].tolist()


def pairs_of(shape: list[tuple[bool, list[int]]]) -> list[tuple[bytes, tuple[str, ...]]]:
    return [
        (picture(number) if good else b"no picture", tuple(TEXTS[text] for text in texts))
        for number, (good, texts) in enumerate(shape)
    ]


def test_scores_are_the_cosines_of_each_pair(scorer: ClipScorer, params: Any, config: ClipConfig) -> None:
    pairs = [(picture(number), TEXTS[: number % 8]) for number in range(11)]
    scores = list(scorer.score(pairs))
    for (payload, texts), similarities in zip(pairs, scores, strict=True):
        assert not isinstance(similarities, NotScored)
        np.testing.assert_allclose(similarities, one_by_one(params, config, payload, texts), atol=1e-5)
    assert np.std([value for row in scores if isinstance(row, list) for value in row]) > 0.01


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, len(TEXTS) - 1), max_size=4)), max_size=70))
@settings(max_examples=15, deadline=None)
def test_any_mixture_comes_out_in_order(scorer: ClipScorer, shape: list[tuple[bool, list[int]]]) -> None:
    scores = list(scorer.score(iter(pairs_of(shape))))
    assert len(scores) == len(shape)
    for (good, texts), similarities in zip(shape, scores, strict=True):
        if good:
            assert isinstance(similarities, list) and len(similarities) == len(texts)
            assert all(-1.0001 <= value <= 1.0001 for value in similarities)
        else:
            assert isinstance(similarities, NotScored) and "not a readable image" in similarities.reason


def test_the_same_pairs_give_the_same_bits(scorer: ClipScorer) -> None:
    pairs = [(picture(number), TEXTS) for number in range(40)]
    first = list(scorer.score(pairs))
    assert list(scorer.score(pairs)) == first
    alone: Any = next(scorer.score(pairs[17:18]))
    np.testing.assert_allclose(alone, np.array(first[17]), atol=1e-6)  # in another batch


def test_processes_decode_to_the_same_scores(scorer: ClipScorer, params: Any, config: ClipConfig) -> None:
    pairs = [(picture(number) if number % 7 else b"no picture", TEXTS[:2]) for number in range(70)]
    in_processes = ClipScorer(params, config, TOKENIZER, 4, decode_workers=2)
    assert list(in_processes.score(pairs)) == list(scorer.score(pairs))


def test_pairs_are_read_as_they_are_needed(scorer: ClipScorer) -> None:
    taken = 0

    def endless() -> Iterator[tuple[bytes, tuple[str, ...]]]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 5), TEXTS[:1]

    scores = scorer.score(endless())
    assert [isinstance(next(scores), list) for _ in range(3)] == [True] * 3
    assert taken <= 2 * 8 * scorer.batch_size + 3 * scorer.batch_size
    scores.close()  # type: ignore[attr-defined]


def test_bfloat16_stays_close(scorer: ClipScorer, params: Any, config: ClipConfig) -> None:
    pairs = [(picture(number), TEXTS[:3]) for number in range(5)]
    half = ClipScorer(params, config, TOKENIZER, 4, "bfloat16")
    difference = np.abs(np.array(list(half.score(pairs))) - np.array(list(scorer.score(pairs))))
    assert 0 < difference.max() < 0.05


def test_a_vocabulary_of_another_model_is_refused(params: Any, config: ClipConfig) -> None:
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=49_408))
    with pytest.raises(UserError, match="but the model's has 49408; name the vocabulary file"):
        ClipScorer(params, other, TOKENIZER)
    with pytest.raises(UserError, match=r"'ViT-B-23' is not a CLIP model; .*did you mean 'ViT-B-32'"):
        ClipScorer.load("ViT-B-23", "x", VOCABULARY)
