"""How the next token is chosen, or which beams are continued, and when an answer ends.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwenvl_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """When an answer ends.

    Attributes:
      max_new_tokens: the largest number of new tokens.
      min_new_tokens: the number of new tokens before which no stop id may be chosen.
      stop_ids: ids that end an answer; they are not part of it.

    Raises:
      UserError: if the numbers contradict each other.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"max_new_tokens {self.max_new_tokens} must be at least 1 and min_new_tokens {self.min_new_tokens} "
                "between 0 and max_new_tokens"
            )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; by default the most likely one is taken.

    The order is that of transformers: temperature, then `top_k`, then `top_p`. What is drawn depends on the seed of the
    prompt and the number of the token alone, not on the other prompts.

    Attributes:
      temperature: by which logits are divided; 0 takes the most likely token.
      top_k: draws from this many most likely tokens; 0 from all.
      top_p: draws from the fewest most likely tokens whose probabilities add up to this; 1 from all.

    Raises:
      UserError: for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature {self.temperature} and top_k {self.top_k} must not be negative, and top_p {self.top_p} "
                "be more than 0 and at most 1"
            )


class RowOptions(NamedTuple):
    """What each row asks for, in a batch whose rows differ. Values are data, so other values compile nothing.

    Attributes:
      max_new_tokens_B: int32, the largest number of new tokens.
      temperature_B: float32, as in `Sampling`.
      top_k_B: int32, as in `Sampling`.
      top_p_B: float32, as in `Sampling`.
    """

    max_new_tokens_B: jax.Array
    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search as `generate` of transformers defines it (4.57 and 5.24 are equal).

    The score of an answer is the sum of the log-probabilities of its tokens, its stop id included, divided by their
    number to the power of `length_penalty`.

    Attributes:
      beams: the number of beams that are continued together, and of answers that are kept.
      length_penalty: more than 0 favours long answers, less than 0 short ones.
      early_stopping: when a search ends. True: once as many answers have ended as there are beams. False: once the best
        beam, at its present length, scores no better than the worst of these answers. "never": as False, but a positive
        `length_penalty` is taken at the largest length that the beam may reach.

    Raises:
      UserError: for values out of range.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise UserError(f"a beam search needs at least one beam, not {self.beams}")
        if not abs(self.length_penalty) <= 100:
            raise UserError(f"length_penalty {self.length_penalty} must be a number between -100 and 100")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f"early_stopping {self.early_stopping!r} must be True, False or 'never'")


def without_early_stops(scores_BV: jax.Array, count_B: jax.Array, limits: Limits) -> jax.Array:
    """Logits or log-probabilities in which stop ids are -inf for rows with fewer tokens than `min_new_tokens`."""
    if not (limits.stop_ids and limits.min_new_tokens):
        return scores_BV
    banned_B1 = jnp.where(count_B < limits.min_new_tokens, -jnp.inf, 0.0)[:, None]
    return scores_BV.at[:, jnp.asarray(limits.stop_ids)].add(banned_B1)


def chosen(
    logits_BV: jax.Array, count_B: jax.Array, seed_B: jax.Array, limits: Limits, sampling: Sampling
) -> jax.Array:
    """The next token of every row, int32 [B].

    Args:
      logits_BV: float32.
      count_B: int32, tokens that the row's answer has already.
      seed_B: uint32, of the row's prompt.
      limits: no stop id is chosen before `min_new_tokens`.
      sampling: how it is drawn.
    """
    logits_BV = without_early_stops(logits_BV, count_B, limits)
    if not sampling.temperature:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jnp.argmax(_allowed(logits_BV, sampling) + _noise(logits_BV, count_B, seed_B), axis=-1).astype(jnp.int32)


def chosen_by_row(
    logits_BV: jax.Array, count_B: jax.Array, seed_B: jax.Array, limits: Limits, options: RowOptions
) -> jax.Array:
    """As `chosen`, with settings for every row. While all rows are greedy, nothing is sorted or drawn."""
    logits_BV = without_early_stops(logits_BV, count_B, limits)
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        scores_BV = _allowed_by_row(logits_BV, options) + _noise(logits_BV, count_B, seed_B)
        return jnp.where(options.temperature_B > 0, jnp.argmax(scores_BV, axis=-1).astype(jnp.int32), greedy_B)

    return jax.lax.cond(jnp.any(options.temperature_B > 0), drawn, lambda: greedy_B)


def _noise(logits_BV: jax.Array, count_B: jax.Array, seed_B: jax.Array) -> jax.Array:
    """Gumbel noise: the largest sum with a logit is a draw from the softmax."""

    def of_row(seed: jax.Array, count: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), count), logits_BV.shape[-1:])

    return jax.vmap(of_row)(seed_B, count_B)


def _allowed(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits after the temperature; -inf for tokens that may not be drawn."""
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        logits_BV = jnp.where(logits_BV >= _least_in_share(sorted_BV, sampling.top_p), logits_BV, -jnp.inf)
    return logits_BV


def _allowed_by_row(logits_BV: jax.Array, options: RowOptions) -> jax.Array:
    """`_allowed` with settings for every row."""
    temperature_B1 = jnp.where(options.temperature_B > 0, options.temperature_B, 1.0)[:, None]
    logits_BV = logits_BV / temperature_B1
    vocabulary = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)

    top_k_B = jnp.where(options.top_k_B > 0, jnp.minimum(options.top_k_B, vocabulary), vocabulary)
    least_B1 = jnp.take_along_axis(sorted_BV, top_k_B[:, None] - 1, axis=-1)
    sorted_BV = jnp.where(sorted_BV >= least_B1, sorted_BV, -jnp.inf)

    top_p_B1 = options.top_p_B[:, None]
    least_in_share_B1 = jnp.where(top_p_B1 < 1, _least_in_share(sorted_BV, top_p_B1), -jnp.inf)
    return jnp.where(logits_BV >= jnp.maximum(least_B1, least_in_share_B1), logits_BV, -jnp.inf)


def _least_in_share(sorted_BV: jax.Array, share: jax.Array | float) -> jax.Array:
    """The least of the fewest largest logits whose probabilities add up to a share, [B, 1]; logits are descending."""
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    last_B1 = jnp.sum(before_BV < share, axis=-1, keepdims=True) - 1
    return jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
