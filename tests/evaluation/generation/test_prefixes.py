"""Prompts that share their first tokens: the same scores as of whole prompts, and how prompts are grouped."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.evaluation.generation.likelihood import OptionScorer
from qwenvl_jax.evaluation.generation.prefixes import LEAST_SHARED, Choice, PrefixSharing
from qwenvl_jax.evaluation.generation.requests import Picture, Request
from qwenvl_jax.models.loaded import LoadedModel

QUERIES = 4
SIDE = 28


def pixels() -> np.ndarray:
    raise AssertionError("grouping needs no pixels")


def prompt(key: int, *parts: list[int] | str) -> Request:
    """Lists are tokens of text, texts are the keys of pictures."""
    ids: list[int] = []
    slots: list[int] = []
    pictures: list[Picture] = []
    for part in parts:
        if isinstance(part, str):
            ids += [7] * QUERIES
            slots += [len(pictures) * QUERIES + query for query in range(QUERIES)]
            pictures.append(Picture(part, pixels))
        else:
            ids += part
            slots += [-1] * len(part)
    return Request(key, np.array(ids, np.int32), np.array(slots, np.int32), tuple(pictures))


def picture_at(request: Request, token: int) -> object:
    """The picture and the feature that a token shows, or None."""
    picture, query = divmod(int(request.image_query_L[token]), QUERIES)
    return None if picture < 0 else (request.pictures[picture].key, query)


def written(request: Request) -> list[tuple[int, object]]:
    """Every token with the picture that it shows."""
    return [(int(token), picture_at(request, index)) for index, token in enumerate(request.tokens_L)]


@st.composite
def prompts(draw: st.DrawFn) -> list[Request]:
    """Subjects of one to five questions after the same exemplars, of which some are pictures."""
    made: list[Request] = []
    for subject in range(draw(st.integers(1, 4))):
        length = draw(st.sampled_from((0, 20, 90)))
        picture = draw(st.lists(st.sampled_from("ab"), max_size=2))
        for _ in range(draw(st.integers(1, 5))):
            question = draw(st.lists(st.integers(8, 9), max_size=12))
            parts: list[list[int] | str] = [
                [subject] * length,
                *picture,
                question,
                *draw(st.lists(st.sampled_from("ab"), max_size=1)),
                [1],
            ]
            made.append(prompt(len(made), *parts))
    return made


@settings(max_examples=200, deadline=None)
@given(prompts(), st.sampled_from((1, 2, 8)), st.sampled_from((0, 100, 1000)))
def test_groups_are_neighbours_with_the_same_beginning(asked: list[Request], rows: int, limit: int) -> None:
    sharing = PrefixSharing(rows, limit, QUERIES)
    groups = list(sharing.groups([Choice(request, ((1,),)) for request in asked]))
    assert [choice.request.key for group in groups for choice in group.choices] == list(range(len(asked)))
    for group in groups:
        assert 1 <= len(group.choices) <= rows
        beginnings = [written(choice.request)[: group.shared] for choice in group.choices]
        assert all(beginning == beginnings[0] for beginning in beginnings)
        if group.shared:
            assert LEAST_SHARED <= group.shared < min(len(choice.request.tokens_L) for choice in group.choices)
            assert max(choice.longest for choice in group.choices) <= limit


@settings(max_examples=200, deadline=None)
@given(prompts(), st.data())
def test_a_prompt_is_its_two_parts(asked: list[Request], data: st.DataObject) -> None:
    sharing = PrefixSharing(8, 1000, QUERIES)
    whole = data.draw(st.sampled_from(asked))
    cut = data.draw(st.integers(0, len(whole.tokens_L)))
    parts = [sharing.part(whole, 0, cut), sharing.part(whole, cut)]
    assert list(itertools.chain(*map(written, parts))) == written(whole)
    for part in parts:
        shown = {part.pictures[query // QUERIES].key for query in part.image_query_L.tolist() if query >= 0}
        assert {picture.key for picture in part.pictures} == shown
    other = data.draw(st.sampled_from(asked))
    common = sharing.common(whole, other)
    assert written(whole)[:common] == written(other)[:common]
    if common < min(len(whole.tokens_L), len(other.tokens_L)) - 1:
        assert written(whole)[common] != written(other)[common]


def test_a_group_ends_with_its_subject_only_if_that_pays() -> None:
    exemplars = [[subject] * 200 for subject in range(3)]
    counts = (6, 2, 6)
    asked = [
        Choice(prompt(0, exemplars[subject], [9, number, 9]), ((1,),))
        for subject, count in enumerate(counts)
        for number in range(count)
    ]
    groups = list(PrefixSharing(8, 1000, QUERIES).groups(asked))
    # Two questions alone would compute 200 + 8 * 3 tokens instead of 2 * 203, which pays.
    assert [(len(group.choices), group.shared) for group in groups] == [(6, 201), (2, 201), (6, 201)]
    # Two questions with a short beginning do not pay: batches are filled up.
    parts = [([subject] * 70, [number], [9] * 60) for subject in range(8) for number in (1, 2)]
    short = [Choice(prompt(0, *each), ((1,),)) for each in parts]
    groups = list(PrefixSharing(8, 1000, QUERIES).groups(short))
    assert [(len(group.choices), group.shared) for group in groups] == [(8, 0), (8, 0)]


def test_a_group_of_one_looks_at_the_next_question() -> None:
    asked = [Choice(prompt(number, [5] * 100, [number, 9]), ((1,),)) for number in range(3)]
    groups = list(PrefixSharing(1, 1000, QUERIES).groups(asked))
    assert [(len(group.choices), group.shared) for group in groups] == [(1, 100), (1, 100), (1, 0)]


@pytest.fixture(scope="module")
def long_model(loaded: LoadedModel) -> LoadedModel:
    """The tiny model, which takes 256 tokens before NTK sets in."""
    decoder = dataclasses.replace(loaded.config.decoder, train_length=256)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, decoder=decoder))


def examination(model: LoadedModel, lengths: tuple[int, ...]) -> list[Choice]:
    """Two subjects of eleven questions, one with a picture among its exemplars."""
    queries = model.config.resampler.queries
    made = []
    for number in range(22):
        draw = np.random.default_rng(number)
        ids = np.random.default_rng(100 + number // 11).integers(0, 300, 150).tolist()
        slots = [-1] * 150
        pictures: tuple[Picture, ...] = ()
        if number // 11:
            slots[30 : 30 + queries] = range(queries)
            pictures = (Picture("of the exemplars", lambda: draw_pixels(0)),)
        own = draw.integers(0, 300, int(draw.integers(1, 30))).tolist()
        options = [draw.integers(0, 300, length).tolist() for length in lengths]
        request = Request(number, np.array(ids + own, np.int32), np.array(slots + [-1] * len(own), np.int32), pictures)
        made.append(Choice(request, options))
    return made


def draw_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("lengths", "batches"), [((1, 1, 1), (1, 8, 32)), ((2, 1), (8,))])
def test_scores_do_not_depend_on_sharing_and_batch(
    long_model: LoadedModel, lengths: tuple[int, ...], batches: tuple[int, ...]
) -> None:
    asked = examination(long_model, lengths)
    whole = OptionScorer(long_model, 8, share_prefixes=False)
    expected = list(whole.score(asked))
    for rows in batches:
        scorer = OptionScorer(long_model, rows)
        scores = list(scorer.score(asked))
        assert [each.key for each in scores] == [each.key for each in expected]
        assert [each.best for each in scores] == [each.best for each in expected]
        for ours, theirs in zip(scores, expected, strict=True):
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-5)
        assert scorer.encoded == 1
        assert scorer.computed < 0.6 * whole.computed


def test_the_ntk_factor_of_an_option_is_its_own(loaded: LoadedModel) -> None:
    """64 tokens are the limit. 62 of a prompt with 2 of an option are below it, whatever its neighbours."""
    text = np.random.default_rng(0).integers(0, 300, 62).astype(np.int32)
    request = Request("a", text, np.full(62, -1, np.int32))
    [alone] = OptionScorer(loaded, 2).score([Choice(request, ((5, 6), (8, 9)))])
    [beside, _] = OptionScorer(loaded, 2).score([
        Choice(request, ((5, 6), (8, 9))), Choice(request._replace(key="b"), ((5, 6), (5, 6, 7, 8))),
    ])  # fmt: skip
    np.testing.assert_allclose(beside.scores, alone.scores, atol=2e-5)
