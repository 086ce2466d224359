"""How likely a model finds each of several given answers.

So the released scripts ask ScienceQA, MMBench, SEED-Bench, MMLU, C-Eval and CMMLU. The score of an option is the mean
log-likelihood of its tokens after the prompt; they take the smallest mean cross entropy, which is its negative. If all
options are single tokens, as " A" to " E" are, one pass serves them all.

Shape suffixes: R prompts, O options, N tokens of an option, L prompt tokens, B = R * O, D width, V vocabulary, C stored
pictures, Q features of a picture, F = C * Q.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.evaluation.generation.prefixes import LEAST_SHARED, Choice, Group, PrefixSharing
from qwenvl_jax.evaluation.generation.requests import LENGTH_STEP, PictureStore, Request, multiple, on, padded
from qwenvl_jax.evaluation.generation.slots import Prompts, everywhere, prefill
from qwenvl_jax.models.cache import Cache
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import batch_shards

PREFIX_STEP = 256  # tokens to which a prefix is rounded up, so that few programs serve all


class OptionScores(NamedTuple):
    """The mean log-likelihood of each option of a request."""

    key: Hashable
    scores: list[float]

    @property
    def best(self) -> int:
        """The most likely option, the first one on a tie."""
        return int(np.argmax(self.scores))


class _Prefix(NamedTuple):
    """The first tokens of a prompt, which are computed already: how many, and their keys and values."""

    prompt: Request
    length: int
    cache: Cache


class OptionScorer:
    """A model that compares options. What neighbouring prompts have in common at their beginning is computed once.

    Attributes:
      computed: tokens that went through the decoder so far, padding included.
    """

    def __init__(
        self,
        model: LoadedModel,
        rows: int,
        mesh: Mesh | None = None,
        stored_pictures: int = 64,
        *,
        share_prefixes: bool = True,
    ):
        """Makes a scorer.

        Args:
          model: its parameters are on the devices of the mesh.
          rows: prompts that are computed at once.
          mesh: None for the device of the parameters.
          stored_pictures: pictures whose features are kept, at least.
          share_prefixes: False computes every prompt as a whole.
        """
        self._model = model
        self._mesh = mesh
        self._rows = multiple(rows, batch_shards(mesh) if mesh else 1)
        self._pictures = PictureStore(model, self._rows, mesh, stored_pictures)
        decoder = model.config.decoder
        # The NTK factor of a longer prompt depends on its length, and so do the keys of all its tokens.
        limit = decoder.train_length if decoder.dynamic_ntk else decoder.max_positions
        self._sharing = PrefixSharing(self._rows, limit if share_prefixes else 0, self._pictures.queries)
        self._prefix: _Prefix | None = None
        self.computed = 0

    @property
    def encoded(self) -> int:
        """How many pictures have been encoded so far."""
        return self._pictures.encoded

    def score(self, choices: Iterable[Choice]) -> Iterator[OptionScores]:
        """The scores of every choice, in order.

        Raises:
          UserError: for an empty prompt, no options, or an option without a token.
        """
        for group in self._sharing.groups(map(_checked, choices)):
            yield from self._scored(group, self._shared(group))

    def _shared(self, group: Group) -> int:
        """How many first tokens of the group are in `_prefix`, which is replaced if another one saves more."""
        sharing = self._sharing
        if group.longest > sharing.limit:
            return 0
        stored = 0
        if self._prefix is not None:
            common = [sharing.common(self._prefix.prompt, choice.request) for choice in group.choices]
            stored = min(self._prefix.length, *common)
        # A new prefix costs its own tokens, and saves each row those that the stored one lacks.
        if group.shared and self._rows * (group.shared - stored) >= group.shared:
            self._prefix = self._computed(group.choices[0].request, group.shared)
            return group.shared
        return stored if stored >= LEAST_SHARED else 0

    def _computed(self, prompt: Request, length: int) -> _Prefix:
        first = self._sharing.part(prompt, 0, length)
        prompts = padded([first], [0], multiple(length, PREFIX_STEP), self._pictures)
        self.computed += prompts.tokens_RL.size
        features = self._pictures.features if first.pictures else None
        with on(self._mesh):
            return _Prefix(prompt, length, _prompt_cache(self._model, prompts, features))

    def _scored(self, group: Group, shared: int) -> Iterator[OptionScores]:
        choices = group.choices
        requests = [self._sharing.part(choice.request, shared) for choice in choices]
        width = multiple(max(len(request.tokens_L) for request in requests), LENGTH_STEP)
        prompts = padded(requests, [0] * self._rows, width, self._pictures)
        count = max(len(choice.options) for choice in choices)
        longest = max(len(option) for choice in choices for option in choice.options)
        options_RON = np.full((self._rows, count, longest), -1, np.int32)
        for row, choice in enumerate(choices):
            for number, option in enumerate(choice.options):
                options_RON[row, number, : len(option)] = option
        self.computed += self._rows * (width if longest == 1 else count * (width + longest - 1))
        features = self._pictures.features if any(request.pictures for request in requests) else None
        prefix = self._prefix.cache if self._prefix is not None and shared else None
        with on(self._mesh):
            scores_RO = jax.device_get(
                _option_scores(self._model, prompts, features, options_RON, prefix, np.int32(shared))
            )
        for choice, scores_O in zip(choices, scores_RO, strict=False):
            yield OptionScores(choice.request.key, scores_O[: len(choice.options)].tolist())


def _checked(choice: Choice) -> Choice:
    if not choice.options or not all(len(option) for option in choice.options):
        raise UserError(f"the question {choice.request.key!r} needs options of at least one token each")
    return choice


@jax.jit
def _prompt_cache(model: LoadedModel, prompts: Prompts, features_CQD: jax.Array | None) -> Cache:
    """The keys and values of prompts."""
    return prefill(model, prompts, features_CQD).cache


@jax.jit
def _option_scores(
    model: LoadedModel,
    prompts: Prompts,
    features_CQD: jax.Array | None,
    options_RON: jax.Array,
    prefix: Cache | None,
    shared: jax.Array,
) -> jax.Array:
    """The mean log-likelihood of the tokens of each option after its prompt, float32 [R, O].

    Args:
      model: the model that is asked.
      prompts: without the tokens of the prefix; `slot_R` and `seed_R` are not used.
      features_CQD: stored pictures.
      options_RON: int32 ids of O options with at most N tokens; -1 behind the end of one, and in unused options.
      prefix: keys and values of the tokens before all prompts, a cache of one row; None if there are none.
      shared: how many tokens these are.
    """
    rows, width = prompts.tokens_RL.shape
    options, longest = options_RON.shape[1:]
    length_R = jnp.maximum(prompts.length_R, 1)
    count_RO = jnp.sum(options_RON >= 0, axis=-1)
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
    # The NTK factor depends on the length of a prompt with this option, and not on that of other options.
    length_RO = length_R[:, None] + jnp.maximum(count_RO[:, :asked], 1) - 1
    valid_BL = (jnp.arange(total) < length_RO[..., None]).reshape(rows * asked, total)
    flat_BL = tokens_ROL.reshape(rows * asked, total)
    embeddings_BLD = model.embed(flat_BL, jnp.repeat(slots_RL, asked, axis=0), features_FD)
    if prefix is None:
        positions_BL = jnp.broadcast_to(jnp.arange(total), flat_BL.shape)
        hidden_BLD, _ = model.prefill(embeddings_BLD, positions_BL, valid_BL, model.init_cache(len(flat_BL), total))
    else:
        hidden_BLD = model.after_prefix(embeddings_BLD, valid_BL, prefix, shared)
    before_RN = length_R[:, None] - 1 + jnp.arange(longest)  # the column that predicts each token of an option
    before_BN = jnp.repeat(before_RN, asked, axis=0)
    hidden_BND = jnp.take_along_axis(hidden_BLD, before_BN[..., None], axis=1)
    likelihood_BNV = jax.nn.log_softmax(model.logits(hidden_BND), axis=-1)
    likelihood_RONV = likelihood_BNV.reshape(rows, asked, longest, -1)
    of_RON = jnp.take_along_axis(
        jnp.broadcast_to(likelihood_RONV, (rows, options, *likelihood_RONV.shape[2:])),
        jnp.maximum(options_RON, 0)[..., None],
        axis=-1,
    )[..., 0]
    mean_RO = jnp.sum(jnp.where(options_RON >= 0, of_RON, 0.0), axis=-1) / jnp.maximum(count_RO, 1)
    return everywhere(jnp.where(count_RO > 0, mean_RO, -jnp.inf))
