"""Cached, batched decoding against greedy decoding that runs the whole row again for every token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.config import ComputeConfig, Config, ModelConfig
from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import Limits, generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.qwen_vl import Params
from qwenvl_jax.runtime.errors import UserError

SIDE = 28
MAX_NEW = 8
TOTAL = 40


def make_prompts(config: Config, tokenizer: Tokenizer) -> list[Prompt]:
    """Texts of several lengths, with no, one and two images."""
    rng = np.random.default_rng(0)
    queries = config.model.resampler.queries
    special = tokenizer.special
    prompts = []
    for length, images in ((5, 0), (9, 1), (3, 2), (17, 0), (1, 0), (11, 1), (2, 2)):
        ids: list[int] = []
        slots: list[int] = []
        for image in range(images):
            ids += [special.img, *[special.imgpad] * queries, special.img_end]
            slots += [-1, *range(image * queries, (image + 1) * queries), -1]
        ids += rng.integers(0, special.first, length).tolist()
        slots += [-1] * length
        pixels = rng.integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
        prompts.append(Prompt(np.array(ids, np.int32), np.array(slots, np.int32), pixels))
    return prompts


@functools.partial(jax.jit, static_argnums=(1, 2))
def last_logits(
    params: Params,
    model: ModelConfig,
    compute: ComputeConfig,
    tokens: jax.Array,
    slots: jax.Array,
    segments: jax.Array,
    count: int,
    images: jax.Array,
) -> jax.Array:
    """Logits [V] after the first `count` tokens of one row, with its whole prefix computed anew."""
    features = qwen_vl.encode_images(params, model, compute, images)
    hidden = qwen_vl.hidden_states(
        params,
        model,
        compute,
        embeddings_BLD=qwen_vl.embed(params, model, compute, tokens, slots, features),
        segment_ids_BL=segments,
        positions_BL=jnp.arange(TOTAL)[None],
        training=False,
    )
    return qwen_vl.logits(params, model, compute, hidden[0, count - 1])


def naive(model: LoadedModel, prompt: Prompt, limits: Limits) -> list[int]:
    """Greedy generation without a cache: the whole row goes through the decoder for every new token."""
    images = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    images[: len(prompt.images_IHWC)] = prompt.images_IHWC
    ids = prompt.tokens_L.tolist()
    new: list[int] = []
    while len(new) < limits.max_new_tokens:
        count = len(ids) + len(new)
        tokens = np.zeros((1, TOTAL), np.int32)
        tokens[0, :count] = ids + new
        slots = np.full((1, TOTAL), -1, np.int32)
        slots[0, : len(ids)] = prompt.image_query_L
        segments = (np.arange(TOTAL) < count)[None].astype(np.int32)
        row = (tokens, slots, segments, count, images)
        logits = np.array(last_logits(model.params, model.config, model.compute, *row))
        if len(new) < limits.min_new_tokens:
            logits[list(limits.stop_ids)] = -np.inf
        token = int(logits.argmax())
        if token in limits.stop_ids:
            break
        new.append(token)
    return new


@pytest.fixture(scope="module", params=["within the trained length", "beyond it, with log-n attention"])
def model(loaded: LoadedModel, request: pytest.FixtureRequest) -> LoadedModel:
    if request.param.startswith("within"):
        return loaded
    # Dynamic NTK depends on the prompt's length, which the row without a cache cannot know, so it is off here.
    decoder = dataclasses.replace(loaded.config.decoder, train_length=8, dynamic_ntk=False)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, decoder=decoder))


def test_equals_generation_without_a_cache(model: LoadedModel, config: Config, tokenizer: Tokenizer) -> None:
    """A token that an answer contains stops it early; banned for the first tokens, it stops the answer later."""
    prompts = make_prompts(config, tokenizer)
    free = Limits(MAX_NEW)
    free_answers = generate(model, prompts, free, batch_size=3)
    stop = free_answers[1][2]
    stopped = Limits(MAX_NEW, stop_ids=(stop,))
    stopped_answers = generate(model, prompts, stopped, batch_size=3)
    banned = Limits(MAX_NEW, min_new_tokens=4, stop_ids=(stop,))
    banned_answers = generate(model, prompts, banned, batch_size=3)
    for index, prompt in enumerate(prompts):
        assert free_answers[index] == naive(model, prompt, free)
        assert stopped_answers[index] == naive(model, prompt, stopped)
        assert banned_answers[index] == naive(model, prompt, banned)
    assert len(stopped_answers[1]) <= 2
    assert stop not in stopped_answers[1]
    for answer in banned_answers:
        assert len(answer) >= 4
        assert stop not in answer


def test_answers_do_not_depend_on_the_batch(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> None:
    prompts = make_prompts(config, tokenizer)
    limits = Limits(MAX_NEW, stop_ids=(tokenizer.special.eot,))

    def ask(batch_size: int, order: Sequence[int]) -> dict[int, list[int]]:
        answers = generate(loaded, [prompts[i] for i in order], limits, batch_size=batch_size)
        return dict(zip(order, answers, strict=True))

    alone = ask(1, range(len(prompts)))
    assert ask(4, [3, 0, 6, 2, 5, 1, 4]) == alone  # the last batch has three prompts and one empty row


def test_no_prompts_have_no_answers(loaded: LoadedModel) -> None:
    assert generate(loaded, [], Limits(1)) == []


@pytest.mark.parametrize(
    "limits",
    [{"max_new_tokens": 0}, {"max_new_tokens": 2, "min_new_tokens": 3}, {"max_new_tokens": 2, "min_new_tokens": -1}],
)
def test_contradicting_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        Limits(**limits)


def test_an_empty_prompt_is_refused(loaded: LoadedModel) -> None:
    empty = Prompt(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(UserError, match="without any token"):
        generate(loaded, [empty], Limits(1))
