"""How an answer is asked for, and how an engine is set up."""

from __future__ import annotations

import dataclasses

from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.stop_strings import check_stops

LEAST_TEMPERATURE = 1e-4  # logits divided by less would leave the range of float32


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """How one answer is written. No value of it compiles anything.

    Attributes:
      max_new_tokens: the largest number of new tokens; the room in the context may be less.
      temperature: as in `Sampling`; 0 takes the most likely token.
      top_k: as in `Sampling`.
      top_p: as in `Sampling`.
      seed: of draws, modulo 2**32; the same prompt with the same seed gets the same answer.
      stop: strings that end the answer; they are not part of its text.

    Raises:
      UserError: for values out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Limits(self.max_new_tokens)
        Sampling(self.temperature, self.top_k, self.top_p)
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(f"temperature {self.temperature} must be 0, or at least {LEAST_TEMPERATURE}")
        if self.max_new_tokens >= 2**31 or self.top_k >= 2**31:
            raise UserError("max_new_tokens and top_k must be less than 2147483648")
        check_stops(self.stop)


# The named ways to choose tokens. `released` is the generation_config.json of the published Qwen-VL-Chat.
NAMED_OPTIONS = {
    "greedy": AnswerOptions(),
    "released": AnswerOptions(max_new_tokens=512, temperature=1.0, top_k=0, top_p=0.3),
}


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """How many an engine serves at once, and what it refuses.

    Attributes:
      slots: answers that are continued at once.
      context: tokens of the longest prompt with its answer; 0 for the smaller of 2,048 and the model's positions.
      waiting: requests that wait for a slot at most.
      wait_seconds: after which a request that waits is given up.
      answer_seconds: after which an answer is cut off, counted from the moment it got its slot.
      stored_pictures: pictures whose features stay on the devices; a request may show as many.
      burst: tokens of each answer between two looks at who else waits.
      joins: requests that get a slot between two bursts, so that answers in progress do not stand still for long.

    Raises:
      UserError: for values out of range.
    """

    slots: int = 8
    context: int = 0
    waiting: int = 64
    wait_seconds: float = 60.0
    answer_seconds: float = 300.0
    stored_pictures: int = 64
    burst: int = 4
    joins: int = 4

    def __post_init__(self) -> None:
        for name in ("slots", "stored_pictures", "burst", "joins"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("context", "waiting"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)} must not be negative")
        for name in ("wait_seconds", "answer_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)} must be more than 0")
