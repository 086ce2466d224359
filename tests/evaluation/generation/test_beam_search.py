"""Beam search: its steps against lists and against all answers, and the whole on a tiny model."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation import beam_slots
from qwenvl_jax.evaluation.generation.generate import Beams, Generator, Request
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError

VOCABULARY = 7
LogProbabilities = Callable[[tuple[int, ...]], np.ndarray]


def language(seed: int) -> LogProbabilities:
    """A language in which the log-probabilities of the next token depend on all tokens before it."""

    @functools.cache
    def following(prefix: tuple[int, ...]) -> np.ndarray:
        logits_V = np.random.default_rng([seed, len(prefix), *prefix]).normal(0, 1.5, VOCABULARY)
        return (logits_V - np.log(np.exp(logits_V).sum())).astype(np.float32)

    return following


@functools.cache
def compiled(limits: Limits, search: BeamSearch) -> Any:
    return jax.jit(functools.partial(beam_slots.extended, limits=limits, search=search))


def searched_by_steps(following: LogProbabilities, limits: Limits, search: BeamSearch) -> list[tuple[list[int], float]]:
    """The answers of `beam_slots.extended`, which sees the tokens of the beams only through the log-probabilities."""
    step = compiled(limits, search)
    now = beam_slots._fresh(1, search.beams, limits.max_new_tokens, active=True)
    prefixes: list[tuple[int, ...]] = [()] * search.beams
    while now.active_G[0]:
        logits_GKV = np.stack([following(prefix) for prefix in prefixes])[None]
        now, parent_GK, token_GK = step(now, jnp.asarray(logits_GKV))
        prefixes = [(*prefixes[parent], int(token)) for parent, token in zip(parent_GK[0], token_GK[0], strict=True)]
        for prefix, tokens_M in zip(prefixes, np.asarray(now.tokens_GKM[0]), strict=True):
            if not set(prefix) & set(limits.stop_ids):
                assert [token for token in tokens_M if token >= 0] == list(prefix)
    assert now.ended_GK.all()
    answers = zip(np.asarray(now.answers_GKM[0]), np.asarray(now.answer_scores_GK[0]), strict=True)
    return [([int(token) for token in ids if token >= 0], float(score)) for ids, score in answers]


def searched_in_lists(following: LogProbabilities, limits: Limits, search: BeamSearch) -> list[tuple[list[int], float]]:
    """Beam search as one would write it by hand: all continuations of all beams, sorted."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    answers: list[tuple[float, tuple[int, ...]]] = []

    def score(total: float, length: int) -> float:
        return total / length**search.length_penalty

    for length in range(1, limits.max_new_tokens + 1):
        continued = []
        for total, prefix in beams:
            for token, share in enumerate(following(prefix)):
                if token not in limits.stop_ids or length > limits.min_new_tokens:
                    continued.append((total + float(share), (*prefix, token)))
        continued.sort(key=lambda each: -each[0])
        ends = {each for each in continued if each[1][-1] in limits.stop_ids or length == limits.max_new_tokens}
        for total, prefix in continued[: search.beams]:
            if (total, prefix) in ends:
                answers.append((score(total, length), prefix))
        answers = sorted(answers, key=lambda each: -each[0])[: search.beams]
        beams = [each for each in continued if each not in ends][: search.beams]
        if len(answers) == search.beams:
            long = search.early_stopping == "never" and search.length_penalty > 0
            hoped = score(beams[0][0], limits.max_new_tokens if long else length) if beams else -math.inf
            if search.early_stopping is True or hoped <= answers[-1][0]:
                break
    return [([token for token in prefix if token not in limits.stop_ids], total) for total, prefix in answers]


@settings(max_examples=40, deadline=None)
@example(seed=0, beams=2, penalty=1.0, early=True, limits=Limits(5, 2, (0, 3)))  # two answers end at once
@given(
    seed=st.integers(0, 10**6),
    beams=st.integers(1, 3),
    penalty=st.sampled_from([0.0, 1.0, 2.0, -0.5]),
    early=st.sampled_from([True, False, "never"]),
    limits=st.sampled_from([Limits(6, 0, (0,)), Limits(5, 2, (0, 3)), Limits(1, 0, (0,)), Limits(4)]),
)
def test_equals_a_search_in_lists(seed: int, beams: int, penalty: float, early: bool | str, limits: Limits) -> None:
    search = BeamSearch(beams, penalty, early)
    ours = searched_by_steps(language(seed), limits, search)
    expected = searched_in_lists(language(seed), limits, search)
    assert [ids for ids, _ in ours] == [ids for ids, _ in expected]
    np.testing.assert_allclose([score for _, score in ours], [score for _, score in expected], rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_with_as_many_beams_as_prefixes_the_best_answers_of_all_are_found(seed: int, penalty: float) -> None:
    following = language(seed)
    limits = Limits(3, stop_ids=(0,))
    every: list[tuple[float, list[int]]] = []
    for length in range(1, 4):
        for prefix in itertools.product(range(VOCABULARY), repeat=length):
            if 0 in prefix[:-1] or (length < 3 and prefix[-1] != 0):
                continue
            total = sum(float(following(prefix[:index])[token]) for index, token in enumerate(prefix))
            every.append((total / length**penalty, [token for token in prefix if token]))
    every.sort(key=lambda each: -each[0])
    ours = searched_by_steps(following, limits, BeamSearch(VOCABULARY**2, penalty, "never"))
    assert [ids for ids, _ in ours[:10]] == [ids for _, ids in every[:10]]
    np.testing.assert_allclose([score for _, score in ours[:10]], [score for score, _ in every[:10]], rtol=1e-5)


@pytest.mark.parametrize("values", [(0,), (2, math.nan), (2, 1e9), (2, 1.0, "always")])
def test_a_search_out_of_range_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=r"beam|penalty|early"):
        BeamSearch(*values)


LIMITS = Limits(max_new_tokens=6, min_new_tokens=1, stop_ids=tuple(range(40)))


def texts(config: Config, tokenizer: Tokenizer) -> list[Request]:
    made = []
    for number in range(7):
        draw = np.random.default_rng(number)
        ids = draw.integers(0, tokenizer.special.first, int(draw.integers(1, 40))).astype(np.int32)
        made.append(Request(number, ids, np.full(len(ids), -1, np.int32)))
    return made


def test_groups_take_new_prompts_and_change_no_answer(
    loaded: LoadedModel, config: Config, tokenizer: Tokenizer
) -> None:
    """One beam takes the most likely token every time. More beams start from the same prompts in any order."""
    asked = texts(config, tokenizer)
    greedy = {answer.key: answer.ids for answer in Generator(loaded, 4).generate(asked, LIMITS)}
    single = Generator(loaded, 4).search(asked, LIMITS, BeamSearch(1), longest=40)
    assert {answer.key: answer.beams[0].ids for answer in single} == greedy

    def by_key(slots: int, order: list[Request]) -> dict[Any, Beams]:
        return {answer.key: answer for answer in Generator(loaded, slots).search(order, LIMITS, BeamSearch(3), 40)}

    together = by_key(9, asked)
    alone = by_key(1, asked[::-1])
    assert set(together) == set(range(7))
    for key, answer in together.items():
        assert len(answer.beams) == 3
        assert [beam.ids for beam in answer.beams] == [beam.ids for beam in alone[key].beams]
        scores = [beam.score for beam in answer.beams]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [beam.score for beam in alone[key].beams], rtol=1e-4)
