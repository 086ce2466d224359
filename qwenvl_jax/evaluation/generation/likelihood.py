"""How likely a model finds each of several given answers.

So the released scripts ask ScienceQA, MMBench, SEED-Bench, MMLU, C-Eval and CMMLU. The score of an option is the mean
log-likelihood of its tokens after the prompt; they take the smallest mean cross entropy, which is its negative. If all
options are single tokens, as " A" to " E" are, one pass serves them all.

Shape suffixes: R prompts, O options, N tokens of an option, L prompt tokens, B = R * O, D width, V vocabulary, C stored
pictures, Q features of a picture, F = C * Q.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.evaluation.generation.requests import LENGTH_STEP, PictureStore, Request, multiple, on, padded
from qwenvl_jax.evaluation.generation.slots import Prompts, everywhere
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import batch_shards


class Choice(NamedTuple):
    """A prompt, and the token ids of each option."""

    request: Request
    options: Sequence[Sequence[int]]


class OptionScores(NamedTuple):
    """The mean log-likelihood of each option of a request."""

    key: Hashable
    scores: list[float]

    @property
    def best(self) -> int:
        """The most likely option, the first one on a tie."""
        return int(np.argmax(self.scores))


class OptionScorer:
    """A model that compares options."""

    def __init__(self, model: LoadedModel, rows: int, mesh: Mesh | None = None, stored_pictures: int = 64):
        """Makes a scorer.

        Args:
          model: its parameters are on the devices of the mesh.
          rows: prompts that are computed at once.
          mesh: None for the device of the parameters.
          stored_pictures: pictures whose features are kept, at least.
        """
        self._model = model
        self._mesh = mesh
        self._rows = multiple(rows, batch_shards(mesh) if mesh else 1)
        self._pictures = PictureStore(model, self._rows, mesh, stored_pictures)

    @property
    def encoded(self) -> int:
        """How many pictures have been encoded so far."""
        return self._pictures.encoded

    def score(self, choices: Iterable[Choice]) -> Iterator[OptionScores]:
        """The scores of every choice, in order.

        Raises:
          UserError: for an empty prompt, no options, or an option without a token.
        """
        batch: list[Choice] = []
        for choice in choices:
            if not choice.options or not all(len(option) for option in choice.options):
                raise UserError(f"the question {choice.request.key!r} needs options of at least one token each")
            batch.append(choice)
            if len(batch) == self._rows:
                yield from self._scored(batch)
                batch = []
        if batch:
            yield from self._scored(batch)

    def _scored(self, choices: Sequence[Choice]) -> Iterator[OptionScores]:
        requests = [choice.request for choice in choices]
        width = multiple(max(len(request.tokens_L) for request in requests), LENGTH_STEP)
        prompts = padded(requests, [0] * self._rows, width, self._pictures)
        count = max(len(choice.options) for choice in choices)
        longest = max(len(option) for choice in choices for option in choice.options)
        options_RON = np.full((self._rows, count, longest), -1, np.int32)
        for row, choice in enumerate(choices):
            for number, option in enumerate(choice.options):
                options_RON[row, number, : len(option)] = option
        features = self._pictures.features if any(request.pictures for request in requests) else None
        with on(self._mesh):
            scores_RO = jax.device_get(_option_scores(self._model, prompts, features, options_RON))
        for choice, scores_O in zip(choices, scores_RO, strict=False):
            yield OptionScores(choice.request.key, scores_O[: len(choice.options)].tolist())


@jax.jit
def _option_scores(
    model: LoadedModel, prompts: Prompts, features_CQD: jax.Array | None, options_RON: jax.Array
) -> jax.Array:
    """The mean log-likelihood of the tokens of each option after its prompt, float32 [R, O].

    Args:
      model: the model that is asked.
      prompts: `slot_R` and `seed_R` are not used.
      features_CQD: stored pictures.
      options_RON: int32 ids of O options with at most N tokens; -1 behind the end of one, and in unused options.
    """
    rows, width = prompts.tokens_RL.shape
    options, longest = options_RON.shape[1:]
    length_R = jnp.maximum(prompts.length_R, 1)
    features_FD = None if features_CQD is None else features_CQD.reshape(-1, features_CQD.shape[-1])
    alone = longest == 1  # then one pass serves all options
    asked = 1 if alone else options
    total = width if alone else width + longest - 1
    tokens_RL = jnp.pad(prompts.tokens_RL, ((0, 0), (0, total - width)))
    slots_RL = jnp.pad(prompts.image_slot_RL, ((0, 0), (0, total - width)), constant_values=-1)
    tokens_ROL = jnp.repeat(tokens_RL[:, None], asked, axis=1)
    after_RN = length_R[:, None] + jnp.arange(longest - 1)  # columns of all tokens of an option but the last
    if not alone:
        row, option = jnp.indices((rows, asked))
        tokens_ROL = tokens_ROL.at[row[..., None], option[..., None], after_RN[:, None]].set(
            jnp.maximum(options_RON[..., :-1], 0)
        )
    valid_RL = jnp.arange(total) < (length_R + longest - 1)[:, None]
    flat_BL = tokens_ROL.reshape(rows * asked, total)
    embeddings_BLD = model.embed(flat_BL, jnp.repeat(slots_RL, asked, axis=0), features_FD)
    positions_BL = jnp.broadcast_to(jnp.arange(total), flat_BL.shape)
    valid_BL = jnp.repeat(valid_RL, asked, axis=0)
    hidden_BLD, _ = model.prefill(embeddings_BLD, positions_BL, valid_BL, model.init_cache(len(flat_BL), total))
    before_RN = length_R[:, None] - 1 + jnp.arange(longest)  # the column that predicts each token of an option
    before_BN = jnp.repeat(before_RN, asked, axis=0)
    hidden_BND = jnp.take_along_axis(hidden_BLD, before_BN[..., None], axis=1)
    likelihood_BNV = jax.nn.log_softmax(model.logits(hidden_BND), axis=-1)
    likelihood_RONV = likelihood_BNV.reshape(rows, asked, longest, -1)
    given_RON = options_RON >= 0
    of_RON = jnp.take_along_axis(
        jnp.broadcast_to(likelihood_RONV, (rows, options, *likelihood_RONV.shape[2:])),
        jnp.maximum(options_RON, 0)[..., None],
        axis=-1,
    )[..., 0]
    count_RO = jnp.sum(given_RON, axis=-1)
    mean_RO = jnp.sum(jnp.where(given_RON, of_RON, 0.0), axis=-1) / jnp.maximum(count_RO, 1)
    return everywhere(jnp.where(count_RO > 0, mean_RO, -jnp.inf))
