"""The device side of beam search: groups of slots that continue the best beams of one prompt each.

A group has a row of the key-value cache for every beam. The prompt is stored once per beam, so that only the columns of
the answer move when a beam is continued more than once. Groups take new prompts as they end, like `slots`.

Shape suffixes: G groups, K beams of a group, B = G * K rows of the cache, C candidates, R prompts that are put in at
once, M new tokens, T columns of the cache, L prompt tokens, N heads, D head size, S layers, V vocabulary.

Source: `GenerationMixin._beam_search` of transformers 4.57, whose arithmetic is followed step by step, so that even its
ties by rounding come out alike.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits, without_early_stops
from qwenvl_jax.evaluation.generation.slots import Prompts, placed, prefill, put, put_prompts
from qwenvl_jax.models.cache import Cache
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.parallel import per_row_and_head

_OUT = -1e9  # is added to the score of a beam that may not be chosen, as in transformers


class Candidates(NamedTuple):
    """The beams of some groups, without their cache.

    Attributes:
      count_G: int32, tokens of every beam of the group so far.
      tokens_GKM: int32, the beams, -1 behind their ends.
      scores_GK: float32, sums of log-probabilities, the best beam first.
      answers_GKM: int32, the answers that have ended, without their stop ids, the best first; -1 behind their ends.
      answer_scores_GK: float32, with the length penalty.
      ended_GK: bool, whether there is such an answer.
      open_G: bool, whether a beam may still become better than the answers.
      active_G: bool, whether the search goes on.
    """

    count_G: jax.Array
    tokens_GKM: jax.Array
    scores_GK: jax.Array
    answers_GKM: jax.Array
    answer_scores_GK: jax.Array
    ended_GK: jax.Array
    open_G: jax.Array
    active_G: jax.Array


class BeamSlots(NamedTuple):
    """The state of all groups: `Candidates`, and for the rows of the cache what `Slots` has.

    Attributes:
      cache: keys and values of prompts and beams.
      token_GK: int32, the newest token of each beam, which is not in the cache yet.
      prompt_G: int32, tokens of the prompt.
      alpha_G: float32, the NTK factor of the prompt.
    """

    cache: Cache
    token_GK: jax.Array
    prompt_G: jax.Array
    alpha_G: jax.Array
    count_G: jax.Array
    tokens_GKM: jax.Array
    scores_GK: jax.Array
    answers_GKM: jax.Array
    answer_scores_GK: jax.Array
    ended_GK: jax.Array
    open_G: jax.Array
    active_G: jax.Array

    def candidates(self) -> Candidates:
        """The part that does not depend on the cache."""
        return Candidates(*(getattr(self, name) for name in Candidates._fields))


def _fresh(groups: int, beams: int, max_new_tokens: int, active: bool) -> Candidates:
    """Beams without any token. Only the first has a score to continue from, else all would become the same."""
    none_GKM = jnp.full((groups, beams, max_new_tokens), -1, jnp.int32)
    score_GK = jnp.full((groups, beams), _OUT, jnp.float32)
    return Candidates(
        jnp.zeros(groups, jnp.int32),
        none_GKM,
        score_GK.at[:, 0].set(0.0),
        none_GKM,
        score_GK,
        jnp.zeros((groups, beams), bool),
        jnp.ones(groups, bool),
        jnp.full(groups, active),
    )


@functools.partial(jax.jit, static_argnames=("groups", "columns", "max_new_tokens", "search"))
def empty_beams(model: LoadedModel, groups: int, columns: int, max_new_tokens: int, *, search: BeamSearch) -> BeamSlots:
    """Groups of which none is active."""
    beams = search.beams
    cache = model.init_cache(groups * beams, columns)
    token_GK = jnp.zeros((groups, beams), jnp.int32)
    alpha_G = jnp.ones(groups, jnp.float32)
    candidates = _fresh(groups, beams, max_new_tokens, active=False)
    return placed(BeamSlots(cache, token_GK, jnp.zeros(groups, jnp.int32), alpha_G, *candidates))


def extended(
    now: Candidates, logits_GKV: jax.Array, limits: Limits, search: BeamSearch
) -> tuple[Candidates, jax.Array, jax.Array]:
    """One step of the search.

    Args:
      now: the beams.
      logits_GKV: float32, of the token after each beam.
      limits: when an answer ends.
      search: the rules.

    Returns:
      The next beams; [G, K] the beam that each of them continues, and [G, K] its new token.
    """
    groups, beams, vocabulary = logits_GKV.shape
    max_new_tokens = now.tokens_GKM.shape[-1]
    stops = jnp.asarray(limits.stop_ids, jnp.int32)
    share_BV = jax.nn.log_softmax(logits_GKV.reshape(-1, vocabulary), axis=-1)
    share_BV = without_early_stops(share_BV, jnp.repeat(now.count_G, beams), limits)
    total_GKV = share_BV.reshape(logits_GKV.shape) + now.scores_GK[:, :, None]
    kept = max(2, 1 + len(limits.stop_ids)) * beams  # so that enough candidates go on if all others end
    score_GC, index_GC = jax.lax.top_k(total_GKV.reshape(groups, -1), kept)
    parent_GC = index_GC // vocabulary
    token_GC = index_GC % vocabulary
    stopped_GC = jnp.isin(token_GC, stops)
    hit_GC = stopped_GC | (now.count_G + 1 >= max_new_tokens)[:, None]
    tokens_GCM = _taken(now.tokens_GKM, parent_GC)
    column_M = jnp.arange(max_new_tokens)
    newest_GCM = jnp.where(stopped_GC, -1, token_GC)[:, :, None]
    tokens_GCM = jnp.where(column_M == now.count_G[:, None, None], newest_GCM, tokens_GCM)

    running_GC = score_GC + hit_GC * _OUT
    _, order_GK = jax.lax.top_k(running_GC, beams)
    after = now._replace(
        count_G=now.count_G + 1, tokens_GKM=_taken(tokens_GCM, order_GK), scores_GK=_taken(running_GC, order_GK)
    )
    after = _with_answers(after, now, tokens_GCM, score_GC, hit_GC, search)
    all_hit_G = jnp.all(hit_GC, axis=-1)
    full_G = jnp.all(after.ended_GK, axis=-1) & (search.early_stopping is True)
    after = after._replace(active_G=after.open_G & ~full_G & ~all_hit_G)
    return after, _taken(parent_GC, order_GK), _taken(token_GC, order_GK)


def _with_answers(
    after: Candidates,
    now: Candidates,
    tokens_GCM: jax.Array,
    score_GC: jax.Array,
    hit_GC: jax.Array,
    search: BeamSearch,
) -> Candidates:
    """Keeps the best answers, those of candidates that have just ended included, and whether they can be beaten."""
    beams = search.beams
    max_new_tokens = tokens_GCM.shape[-1]
    lengths = np.arange(max_new_tokens + 1, dtype=np.float64)
    lengths[0] = 1
    penalty = jnp.asarray(lengths**search.length_penalty, jnp.float32)  # by the length of an answer
    early = search.early_stopping is True
    may_end_GC = hit_GC & (jnp.arange(hit_GC.shape[1]) < beams)
    full_G1 = jnp.all(now.ended_GK, axis=-1, keepdims=True) & early
    score_GC = score_GC / penalty[after.count_G][:, None]
    score_GC += full_G1 * _OUT
    score_GC += ~now.open_G[:, None] * _OUT
    score_GC += ~may_end_GC * _OUT
    _, best_GK = jax.lax.top_k(jnp.concatenate([now.answer_scores_GK, score_GC], axis=1), beams)
    scores_GK = _taken(jnp.concatenate([now.answer_scores_GK, score_GC], axis=1), best_GK)
    ended_GK = _taken(jnp.concatenate([now.ended_GK, may_end_GC], axis=1), best_GK)
    answers_GKM = _taken(jnp.concatenate([now.answers_GKM, tokens_GCM], axis=1), best_GK)

    at_most = search.early_stopping == "never" and search.length_penalty > 0
    reached_G = penalty[jnp.full_like(after.count_G, max_new_tokens) if at_most else after.count_G]
    best_G1 = after.scores_GK[:, :1] / reached_G[:, None]
    worst_GK = jnp.where(ended_GK, jnp.min(scores_GK, axis=1, keepdims=True), _OUT)
    open_G = now.open_G & jnp.any(best_G1 > worst_GK, axis=-1)
    return after._replace(answers_GKM=answers_GKM, answer_scores_GK=scores_GK, ended_GK=ended_GK, open_G=open_G)


def _taken(values: jax.Array, index_GK: jax.Array) -> jax.Array:
    """[G, C, ..] values at [G, K] indices: [G, K, ..]."""
    return jnp.take_along_axis(values, index_GK.reshape(*index_GK.shape, *[1] * (values.ndim - 2)), axis=1)


@functools.partial(jax.jit, static_argnames=("limits", "search"), donate_argnames="state")
def fill_beams(
    model: LoadedModel,
    state: BeamSlots,
    prompts: Prompts,
    features_CQD: jax.Array | None,
    *,
    limits: Limits,
    search: BeamSearch,
) -> BeamSlots:
    """Runs prompts, stores their keys and values in all rows of their groups, and chooses the first tokens."""
    read = prefill(model, prompts, features_CQD)
    slot_R = prompts.slot_R
    rows, vocabulary = read.logits_RV.shape
    beams = search.beams
    logits_RKV = jnp.broadcast_to(read.logits_RV[:, None], (rows, beams, vocabulary))
    fresh = _fresh(rows, beams, limits.max_new_tokens, active=True)
    candidates, _, token_RK = extended(fresh, logits_RKV, limits, search)

    cache = state.cache
    for beam in range(beams):
        cache = put_prompts(cache, read.cache, slot_R * beams + beam)
    return placed(
        BeamSlots(
            cache,
            put(state.token_GK, token_RK, slot_R),
            put(state.prompt_G, read.length_R, slot_R),
            put(state.alpha_G, read.alpha_R, slot_R),
            *(put(old, new, slot_R) for old, new in zip(state.candidates(), candidates, strict=True)),
        )
    )


@functools.partial(jax.jit, static_argnames=("limits", "search"), donate_argnames="state")
def advance_beams(
    model: LoadedModel,
    state: BeamSlots,
    steps: jax.Array,
    leave: jax.Array,
    *,
    limits: Limits,
    search: BeamSearch,
) -> BeamSlots:
    """Continues the beams of active groups by up to `steps` tokens.

    It ends earlier once at most `leave` groups are active: then others can take new prompts.
    """
    groups, beams = state.token_GK.shape
    everything_BT = jnp.ones((groups * beams, state.cache.columns), bool)

    def goes_on(carry: tuple[jax.Array, BeamSlots]) -> jax.Array:
        step, state = carry
        active = jnp.sum(state.active_G, dtype=jnp.int32)
        return (step < steps) & (active > leave) & (active > 0)

    def step(carry: tuple[jax.Array, BeamSlots]) -> tuple[jax.Array, BeamSlots]:
        step, state = carry
        column_B = jnp.repeat(state.prompt_G + state.count_G - 1, beams)
        token_B = state.token_GK.reshape(-1)
        alpha_B = jnp.repeat(state.alpha_G, beams)
        hidden_BD, cache = model.decode_step(token_B, column_B, everything_BT, column_B, state.cache, alpha_B)
        now = state.candidates()
        logits_GKV = model.logits(hidden_BD).reshape(groups, beams, -1)
        after, parent_GK, token_GK = extended(now, logits_GKV, limits, search)

        def if_active(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(state.active_G.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        parent_GK = if_active(parent_GK, jnp.broadcast_to(jnp.arange(beams), (groups, beams)))
        cache = jax.tree.map(lambda part: _moved(part, parent_GK, state.prompt_G, limits.max_new_tokens), cache)
        token_GK = if_active(token_GK, state.token_GK)
        candidates = Candidates(*map(if_active, after, now))
        return step + 1, BeamSlots(cache, token_GK, state.prompt_G, state.alpha_G, *candidates)

    return placed(jax.lax.while_loop(goes_on, step, (jnp.int32(0), state))[1])


def _moved(part_BNTD: jax.Array, parent_GK: jax.Array, prompt_G: jax.Array, max_new_tokens: int) -> jax.Array:
    """Keys or values in which every beam has those of the answer that it continues; the prompt's columns stay.

    `part_BNTD` may have an axis of layers before its rows.
    """
    beams = parent_GK.shape[1]
    rows, heads, columns, _ = part_BNTD.shape[-4:]
    axes = "S" * (part_BNTD.ndim - 4) + "BNTK"
    local = functools.partial(_move_by_group, beams=beams, width=min(max_new_tokens, columns))
    move = per_row_and_head(local, (axes, "B", "B"), axes, rows, heads)
    return move(part_BNTD, parent_GK.reshape(-1), jnp.repeat(prompt_G, beams))


def _move_by_group(
    part_BNTD: jax.Array, parent_B: jax.Array, first_B: jax.Array, *, beams: int, width: int
) -> jax.Array:
    """One update in place after another, see `models.cache.written`; all rows of a group are on one device."""
    *stack, rows, heads, _, size = part_BNTD.shape
    for row in range(0, rows, beams):
        start: tuple[Any, ...] = (*(0 for _ in stack), row, 0, first_B[row], 0)
        answer_KNTD = jax.lax.dynamic_slice(part_BNTD, start, (*stack, beams, heads, width, size))
        # A product instead of `answer[parent]`: XLA for CPUs (0.10.2) would read these beams while it writes them.
        source_KJ = jax.nn.one_hot(parent_B[row : row + beams], beams, dtype=part_BNTD.dtype)
        answer_KNTD = jnp.einsum(
            "KJ,...JNTD->...KNTD", source_KJ, answer_KNTD, precision=jax.lax.Precision.HIGHEST
        ).astype(part_BNTD.dtype)
        part_BNTD = jax.lax.dynamic_update_slice(part_BNTD, answer_KNTD, start)
    return part_BNTD
