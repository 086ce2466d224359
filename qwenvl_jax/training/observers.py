"""What is measured while a stage trains: observers of its state.

An observer is called every `config.evaluation.every` steps and after the last one. It must leave the state as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jax.sharding import Mesh

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.training.held_out import HeldOutLoss
from qwenvl_jax.training.state import State

# (step, state) -> figures by name, such as {"loss": 2.1}. All processes call it together.
Observer = Callable[[int, State], Mapping[str, float]]

# (config, tokenizer, mesh) -> an observer of this run. Raises UserError if it could not observe.
MakeObserver = Callable[[Config, Tokenizer, Mesh], Observer]


def make_observers(
    config: Config, tokenizer: Tokenizer, mesh: Mesh, makers: Sequence[MakeObserver] = ()
) -> list[Observer]:
    """The observers of a run: of the held-out loss if the config names a split, and those of `makers`.

    Returns:
      An empty list if `config.evaluation.every` is 0.
    """
    if not config.evaluation.every:
        return []
    observers = [make(config, tokenizer, mesh) for make in makers]
    return [HeldOutLoss(config, tokenizer, mesh), *observers] if config.evaluation.split else observers
