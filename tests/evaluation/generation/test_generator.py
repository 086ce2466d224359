"""Slots that are refilled, pictures that are shared, tokens that are drawn."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import GREEDY, Generator, Picture, Request
from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling, chosen
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError

SIDE = 28
LIMITS = Limits(max_new_tokens=12, stop_ids=(0, 1, 2, 3, 4, 5, 6, 7))  # answers of all lengths


class Album:
    """Pictures by number; counts how often the pixels of each are asked for."""

    def __init__(self) -> None:
        self.asked: collections.Counter[int] = collections.Counter()

    def picture(self, number: int) -> Picture:
        def pixels() -> np.ndarray:
            self.asked[number] += 1
            return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)

        return Picture(number, pixels)


def requests(config: Config, tokenizer: Tokenizer, album: Album, count: int) -> Iterator[Request]:
    """Every third is text alone; the others ask about one or two of a few pictures, neighbours about the same one."""
    queries = config.model.resampler.queries
    special = tokenizer.special
    for number in range(count):
        draw = np.random.default_rng(number)
        shown = [] if number % 3 == 0 else [number // 6, number // 6 + 1][: 1 + number % 2]
        ids: list[int] = []
        slots: list[int] = []
        for index in range(len(shown)):
            ids += [special.img, *[special.imgpad] * queries, special.img_end]
            slots += [-1, *range(index * queries, (index + 1) * queries), -1]
        length = int(draw.integers(1, 50))
        ids += draw.integers(0, special.first, length).tolist()
        slots += [-1] * length
        pictures = tuple(album.picture(each) for each in shown)
        yield Request(number, np.array(ids, np.int32), np.array(slots, np.int32), pictures, seed=number)


Ask = Callable[..., dict[int, list[int]]]


@pytest.fixture(scope="module")
def ask(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> Ask:
    def asked(slots: int, sampling: Sampling = GREEDY, stored_pictures: int = 64) -> dict[int, list[int]]:
        generator = Generator(loaded, slots, stored_pictures=stored_pictures)
        asked = list(requests(config, tokenizer, Album(), 24))
        longest = max(len(request.tokens_L) for request in asked)
        answers = generator.generate(asked, LIMITS, sampling, longest)
        return {int(str(answer.key)): answer.ids for answer in answers}

    return asked


@pytest.fixture(scope="module")
def alone(ask: Ask) -> dict[int, list[int]]:
    return ask(1)


def test_a_cache_that_grows_changes_no_answer(
    alone: dict[int, list[int]], loaded: LoadedModel, config: Config, tokenizer: Tokenizer
) -> None:
    asked = sorted(requests(config, tokenizer, Album(), 24), key=lambda request: len(request.tokens_L))
    assert {int(str(key)): ids for key, ids in Generator(loaded, 4).generate(asked, LIMITS)} == alone


@pytest.mark.parametrize("slots", [2, 8])
def test_answers_do_not_depend_on_the_slots(ask: Ask, alone: dict[int, list[int]], slots: int) -> None:
    assert len({len(ids) for ids in alone.values()}) > 3
    assert ask(slots) == alone


def test_a_full_store_of_pictures_changes_no_answer(ask: Ask, alone: dict[int, list[int]]) -> None:
    assert ask(4, stored_pictures=1) == alone


def test_every_picture_is_decoded_and_encoded_once(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> None:
    album = Album()
    generator = Generator(loaded, 4)
    asked = list(requests(config, tokenizer, album, 30))
    different = {picture.key for request in asked for picture in request.pictures}
    assert len(list(generator.generate(asked, LIMITS))) == 30
    assert generator.encoded == len(different) < sum(len(request.pictures) for request in asked)
    assert set(album.asked.values()) == {1}


def test_requests_are_taken_as_slots_become_free(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request(taken, np.array([9, 8, taken % 5 + 9], np.int32), np.full(3, -1, np.int32))

    answers = Generator(loaded, 4).generate(endless(), LIMITS)
    assert len([next(answers) for _ in range(5)]) == 5
    assert taken <= 4 + 5 + 4


def test_drawn_tokens_do_not_depend_on_the_slots(ask: Ask, alone: dict[int, list[int]]) -> None:
    warm = Sampling(temperature=1.0, top_k=50, top_p=0.9)
    drawn = ask(1, warm)
    assert ask(5, warm) == drawn
    assert drawn != alone
    assert ask(3, Sampling(temperature=1e-6)) == alone


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, 5), Sampling(1.5, 0, 0.8), Sampling(0.9, 12, 0.6)])
def test_tokens_are_drawn_as_transformers_weighs_them(sampling: Sampling) -> None:
    logits_V = np.random.default_rng(0).normal(0, 2, 20).astype(np.float32)
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    before: Any = None  # no warper looks at the tokens before
    row: Any = torch.from_numpy(logits_V)[None]
    warped = LogitsProcessorList(warpers)(before, row)
    expected_V = torch.softmax(warped, -1)[0].numpy()
    rows = 20_000
    seed_B = jnp.arange(rows, dtype=jnp.uint32)
    logits_BV = jnp.broadcast_to(logits_V, (rows, 20))
    token_B = chosen(logits_BV, jnp.zeros(rows, jnp.int32), seed_B, Limits(1), sampling)
    share_V = np.bincount(np.asarray(token_B), minlength=20) / rows
    assert not share_V[expected_V == 0].any()
    error_V = np.sqrt(expected_V * (1 - expected_V) / rows)
    assert (np.abs(share_V - expected_V) <= 4.5 * error_V + 1e-9).all()


def test_later_tokens_are_drawn_anew() -> None:
    logits_BV = jnp.zeros((200, 50))
    seed_B = jnp.zeros(200, jnp.uint32)
    token_B = np.asarray(chosen(logits_BV, jnp.arange(200), seed_B, Limits(1), Sampling(1.0)))
    assert len(set(token_B.tolist())) > 40


@pytest.mark.parametrize("values", [(-1.0,), (float("nan"),), (1.0, -1), (1.0, 0, 0.0), (1.0, 0, 1.1)])
def test_sampling_out_of_range_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="temperature"):
        Sampling(*values)  # type: ignore[arg-type]
