"""Cached, batched decoding against greedy decoding that runs the whole row again for every token."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.evaluation.generate import Limits, generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError

SIDE = 28
MAX_NEW = 8
TOTAL = 40


def make_prompts(config, tokenizer):
    """Texts of several lengths, with no, one and two images."""
    rng = np.random.default_rng(0)
    queries = config.model.resampler.queries
    special = tokenizer.special
    prompts = []
    for length, images in ((5, 0), (9, 1), (3, 2), (17, 0), (1, 0), (11, 1), (2, 2)):
        ids, slots = [], []
        for image in range(images):
            ids += [special.img, *[special.imgpad] * queries, special.img_end]
            slots += [-1, *range(image * queries, (image + 1) * queries), -1]
        ids += rng.integers(0, special.first, length).tolist()
        slots += [-1] * length
        pixels = rng.integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
        prompts.append(Prompt(np.array(ids, np.int32), np.array(slots, np.int32), pixels))
    return prompts


@functools.partial(jax.jit, static_argnums=(1, 2))
def last_logits(params, model, compute, tokens, slots, segments, count, images):
    features = qwen_vl.encode_images(params, model, compute, images)
    hidden = qwen_vl.hidden_states(
        params,
        model,
        compute,
        embeddings_BLD=qwen_vl.embed(params, model, compute, tokens, slots, features),
        segment_ids_BL=segments,
        positions_BL=np.arange(TOTAL)[None],
        training=False,
    )
    return qwen_vl.logits(params, model, compute, hidden[0, count - 1])


def naive(params, model, compute, prompt, max_new, min_new, stops):
    """One prompt, no cache: the whole row goes through the decoder for every new token."""
    images = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    images[: len(prompt.images_IHWC)] = prompt.images_IHWC
    ids, new = prompt.tokens_L.tolist(), []
    while len(new) < max_new:
        count = len(ids) + len(new)
        tokens, slots = np.zeros((1, TOTAL), np.int32), np.full((1, TOTAL), -1, np.int32)
        tokens[0, :count], slots[0, : len(ids)] = ids + new, prompt.image_query_L
        segments = (np.arange(TOTAL) < count)[None].astype(np.int32)
        logits = np.array(last_logits(params, model, compute, tokens, slots, segments, count, images))
        if len(new) < min_new:
            logits[list(stops)] = -np.inf
        token = int(logits.argmax())
        if token in stops:
            break
        new.append(token)
    return new


@pytest.fixture(scope="module", params=["within the trained length", "beyond it, with log-n attention"])
def model(config, request):
    if request.param.startswith("within"):
        return config.model
    # Dynamic NTK goes by the prompt's length, which the uncached row cannot know, so it is off here.
    decoder = dataclasses.replace(config.model.decoder, train_length=8, dynamic_ntk=False)
    return dataclasses.replace(config.model, decoder=decoder)


def test_equals_generation_without_a_cache(params, model, config, tokenizer):
    """A token that an answer contains stops it early; banned for the first tokens, it stops the answer later."""
    prompts = make_prompts(config, tokenizer)
    loaded = LoadedModel(params, model, config.compute)
    free = generate(loaded, prompts, Limits(MAX_NEW), batch_size=3)
    stop = free[1][2]
    stopped = generate(loaded, prompts, Limits(MAX_NEW, stop_ids=(stop,)), batch_size=3)
    kept = generate(loaded, prompts, Limits(MAX_NEW, min_new=4, stop_ids=(stop,)), batch_size=3)
    for index, prompt in enumerate(prompts):
        assert free[index] == naive(params, model, config.compute, prompt, MAX_NEW, 0, ())
        assert stopped[index] == naive(params, model, config.compute, prompt, MAX_NEW, 0, (stop,))
        assert kept[index] == naive(params, model, config.compute, prompt, MAX_NEW, 4, (stop,))
    assert len(stopped[1]) <= 2
    assert stop not in stopped[1]
    for answer in kept:
        assert len(answer) >= 4
        assert stop not in answer


def test_answers_do_not_depend_on_the_batch_and_progress_counts_them(loaded, config, tokenizer):
    prompts = make_prompts(config, tokenizer)
    limits = Limits(MAX_NEW, stop_ids=(tokenizer.special.eot,))
    done: list[int] = []

    def ask(batch_size: int, order: Sequence[int]) -> dict[int, list[int]]:
        answers = generate(loaded, [prompts[i] for i in order], limits, batch_size=batch_size, progress=done.append)
        return dict(zip(order, answers, strict=True))

    alone = ask(1, range(len(prompts)))
    assert done == [1] * 7
    done.clear()
    assert ask(4, [3, 0, 6, 2, 5, 1, 4]) == alone  # the last batch has three prompts and one empty row
    assert done == [4, 3]


def test_no_prompts_have_no_answers(loaded):
    assert generate(loaded, [], Limits(1)) == []


@pytest.mark.parametrize("limits", [{"max_new": 0}, {"max_new": 2, "min_new": 3}, {"max_new": 2, "min_new": -1}])
def test_contradicting_limits_are_refused(limits):
    with pytest.raises(UserError, match="max_new"):
        Limits(**limits)


def test_an_empty_prompt_is_refused(loaded):
    empty = Prompt(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(UserError, match="without any token"):
        generate(loaded, [empty], Limits(1))
