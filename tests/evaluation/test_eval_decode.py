"""Cached, batched decoding against greedy decoding that runs the whole row again for every token."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.evaluation.decode import generate
from qwenvl_jax.models import qwen_vl
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


def test_equals_decoding_without_a_cache(params, model, config, tokenizer):
    prompts = make_prompts(config, tokenizer)
    free = generate(params, model, config.compute, tokenizer, prompts, max_new=MAX_NEW, stop_ids=(), batch_size=3)
    # A token that some answer contains stops it early; banned for the first three tokens it stops later.
    stop = free[1][2]
    stopped = generate(
        params, model, config.compute, tokenizer, prompts, max_new=MAX_NEW, stop_ids=(stop,), batch_size=3
    )
    kept = generate(
        params, model, config.compute, tokenizer, prompts, max_new=MAX_NEW, min_new=4, stop_ids=(stop,), batch_size=3
    )
    for prompt, a, b, c in zip(prompts, free, stopped, kept, strict=True):
        assert a == naive(params, model, config.compute, prompt, MAX_NEW, 0, ())
        assert b == naive(params, model, config.compute, prompt, MAX_NEW, 0, (stop,))
        assert c == naive(params, model, config.compute, prompt, MAX_NEW, 4, (stop,))
    assert len(stopped[1]) <= 2 and stop not in stopped[1]
    assert all(len(answer) >= 4 and stop not in answer for answer in kept)


def test_answers_do_not_depend_on_the_batch_and_progress_counts_them(params, config, tokenizer):
    prompts = make_prompts(config, tokenizer)
    done = []

    def ask(batch_size, order):
        answers = generate(
            params, config.model, config.compute, tokenizer, [prompts[i] for i in order],
            max_new=MAX_NEW, batch_size=batch_size, progress=done.append,
        )  # fmt: skip
        return dict(zip(order, answers, strict=True))

    alone = ask(1, range(len(prompts)))
    assert ask(4, [3, 0, 6, 2, 5, 1, 4]) == alone  # the last batch has three prompts and one empty row
    assert done == [1] * 7 + [4, 3]


def test_nothing_to_ask_is_nothing_answered(params, config, tokenizer):
    assert generate(params, config.model, config.compute, tokenizer, [], max_new=1) == []


@pytest.mark.parametrize("limits", [{"max_new": 0}, {"max_new": 2, "min_new": 3}, {"max_new": 2, "min_new": -1}])
def test_contradicting_limits_are_refused(params, config, tokenizer, limits):
    with pytest.raises(UserError, match="max_new"):
        generate(params, config.model, config.compute, tokenizer, make_prompts(config, tokenizer)[:1], **limits)


def test_an_empty_prompt_is_refused(params, config, tokenizer):
    empty = Prompt(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(UserError, match="without any token"):
        generate(params, config.model, config.compute, tokenizer, [empty], max_new=1)
