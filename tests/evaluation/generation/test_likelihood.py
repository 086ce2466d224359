"""Scores of options against whole rows that go through the decoder one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.likelihood import OptionScorer, OptionScores
from qwenvl_jax.evaluation.generation.prefixes import Choice
from qwenvl_jax.evaluation.generation.requests import Picture, Request
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError

SIDE = 28
TOTAL = 48


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def choices(config: Config, tokenizer: Tokenizer, lengths: tuple[int, ...]) -> list[Choice]:
    """Every other one shows a picture; the options have the given numbers of tokens, one option less in every third."""
    queries = config.model.resampler.queries
    special = tokenizer.special
    made = []
    for number in range(7):
        draw = np.random.default_rng(number)
        ids: list[int] = []
        slots: list[int] = []
        if number % 2:
            ids = [special.img, *[special.imgpad] * queries, special.img_end]
            slots = [-1, *range(queries), -1]
        text = draw.integers(0, special.first, int(draw.integers(1, 14))).tolist()
        ids += text
        slots += [-1] * len(text)
        shown = (Picture(number // 4, lambda picture=number // 4: pixels_of(picture)),) if number % 2 else ()  # type: ignore[misc]
        options = [draw.integers(0, special.first, length).tolist() for length in lengths]
        request = Request(number, np.array(ids, np.int32), np.array(slots, np.int32), shown)
        made.append(Choice(request, options[: len(options) - (number % 3 == 0)]))
    return made


def one_by_one(model: LoadedModel, choice: Choice) -> list[float]:
    scores = []
    shown = choice.request.pictures
    images = np.stack([picture.pixels() for picture in shown]) if shown else None
    prompt = choice.request.tokens_L.tolist()
    for option in choice.options:
        tokens = np.zeros((1, TOTAL), np.int32)
        tokens[0, : len(prompt) + len(option)] = [*prompt, *option]
        slots = np.full((1, TOTAL), -1, np.int32)
        slots[0, : len(prompt)] = choice.request.image_query_L
        hidden = jax.jit(qwen_vl.forward, static_argnames=("model", "compute", "training"))(
            model.params,
            model=model.config,
            compute=model.compute,
            tokens_BL=tokens,
            segment_ids_BL=(np.arange(TOTAL) < len(prompt) + len(option) - 1)[None].astype(np.int32),
            positions_BL=np.arange(TOTAL)[None],
            image_slot_BL=slots,
            images_IHWC=images,
            training=False,
        )
        log_V = jax.nn.log_softmax(model.logits(hidden[0]), axis=-1)
        at = jnp.arange(len(prompt) - 1, len(prompt) - 1 + len(option))
        scores.append(float(jnp.mean(log_V[at, jnp.array(option)])))
    return scores


@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 3, 2)])
def test_scores_are_those_of_whole_rows(
    loaded: LoadedModel, config: Config, tokenizer: Tokenizer, lengths: tuple[int, ...]
) -> None:
    asked = choices(config, tokenizer, lengths)
    for result, choice in zip(OptionScorer(loaded, 3).score(asked), asked, strict=True):
        expected = one_by_one(loaded, choice)
        assert result.key == choice.request.key
        np.testing.assert_allclose(result.scores, expected, atol=2e-5)
        assert result.best == int(np.argmax(expected))


def test_the_first_option_wins_a_tie() -> None:
    assert OptionScores("a", [-2.0, -1.0, -1.0]).best == 1


def test_options_without_tokens_are_refused(loaded: LoadedModel) -> None:
    request = Request("q1", np.array([9], np.int32), np.array([-1], np.int32))
    for options in ((), ((5,), ())):
        with pytest.raises(UserError, match="'q1' needs options of at least one token each"):
            list(OptionScorer(loaded, 1).score([Choice(request, options)]))
