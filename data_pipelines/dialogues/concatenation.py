"""Strategy concatenation: a dialogue about one to three pictures from their annotations, drawn by a seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.dialogues.exchanges import Exchange, State
from data_pipelines.dialogues.exchanges_of_several import KINDS
from data_pipelines.dialogues.picture import AnnotatedPicture
from qwenvl_jax.data.dialogues import Part, Turn
from qwenvl_jax.runtime.errors import UserError, nearest

_LATER_SHARE = 0.3  # of the dialogues about several pictures, those that show the others in later turns
_FEWEST_EXCHANGES = 2
_MOST_EXCHANGES = 5


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """The turns of a dialogue, and the kind of every exchange."""

    turns: list[Turn]
    kinds: tuple[str, ...]


def weights_of(text: str) -> dict[str, float]:
    """The weights of all kinds, with those that a user gives: "where=3,count=0".

    Raises:
      UserError: for an unknown kind, a weight that is not a number of 0 or more, or no kind that is left.
    """
    weights = {name: weighted.weight for name, weighted in KINDS.items()}
    for entry in filter(None, text.split(",")):
        name, _, value = entry.partition("=")
        if name not in KINDS:
            raise UserError(f"there is no kind of exchange {name!r}{nearest(name, KINDS)}; use {', '.join(KINDS)}")
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = -1
        if not 0 <= weights[name] < float("inf"):
            raise UserError(f"the weight of {name!r} is {value!r}; give a number of 0 or more, as in {name}=2")
    if not any(weights.values()):
        raise UserError("all weights of exchanges are 0; leave one that is greater")
    return weights


def concatenated(pictures: Sequence[AnnotatedPicture], seed: str, weights: Mapping[str, float]) -> Dialogue | None:
    """A dialogue about pictures; None if their annotations allow no exchange about one of them.

    Args:
      pictures: in the order in which they are shown, of one language.
      seed: of everything that is drawn.
      weights: of the kinds of exchange.
    """
    rng = random.Random(seed)
    later = len(pictures) > 1 and rng.random() < _LATER_SHARE
    shown = 1 if later else len(pictures)
    exchanges: list[Exchange] = []
    turns: list[Turn] = []
    images: list[Part] = [{"image": number} for number in range(shown)]
    rounds = rng.randint(_FEWEST_EXCHANGES, _MOST_EXCHANGES)
    while len(exchanges) < rounds or shown < len(pictures):
        if shown < len(pictures) and exchanges:
            images = [{"image": shown}]
            shown += 1
        new = shown - 1 if exchanges and images else -1
        exchange = _next(State(rng, pictures[:shown], exchanges), weights, new)
        if exchange is None:
            if images:  # a picture about which nothing can be asked
                return None
            break
        exchanges.append(exchange)
        turns.append({"role": "user", "parts": [*images, *exchange.question]})
        turns.append({"role": "assistant", "parts": exchange.answer})
        images = []
    return Dialogue(turns, tuple(exchange.kind for exchange in exchanges))


def _next(state: State, weights: Mapping[str, float], about: int) -> Exchange | None:
    """An exchange that tells something new, about one picture if `about` is not -1: first the kind, then the exchange.

    A question is never asked twice in the same words either.
    """
    told = {exchange.target for exchange in state.before}
    boxes = [exchange for exchange in state.before if exchange.kind != "which"]  # which does not tell where it is
    told |= {("where", exchange.picture, phrase) for exchange in boxes for phrase in exchange.told}
    asked = [exchange.question for exchange in state.before]
    kinds = [name for name, weight in weights.items() if weight > 0]
    while kinds:
        kind = state.rng.choices(kinds, [weights[name] for name in kinds])[0]
        kinds.remove(kind)
        makers = [make for target, make in KINDS[kind].kind(state) if target not in told]
        if about >= 0:
            makers = [make for target, make in KINDS[kind].kind(state) if target not in told and about in target[1:2]]
        if not makers:
            continue
        exchange = state.rng.choice(makers)()
        if exchange.question not in asked:
            return exchange
    return None


def sizes_of(pictures: Sequence[AnnotatedPicture]) -> list[list[Any]]:
    """The `sizes` of a dialogue about these pictures."""
    return [list(picture.size) for picture in pictures]
