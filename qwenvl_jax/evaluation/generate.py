"""Continues prompts in slots: as answers end, the next prompts take their slots, and each picture is encoded once.

    generator = Generator(model, slots=32, mesh=mesh)
    for answer in generator.generate(requests, Limits(max_new=10, stop_ids=(151643,))):    # in the order of their ends
        print(answer.key, answer.ids)

A generator works on any mesh, of one process or of all. All processes of a mesh make the same calls with the same
requests; every one of them gets all answers. Lengths are rounded up, so that a whole benchmark needs few compilations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.evaluation import slots as device
from qwenvl_jax.evaluation.requests import LENGTH_STEP, Picture, PictureStore, Request, multiple, on, padded
from qwenvl_jax.evaluation.sampling import Limits, Sampling
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.sharding.mesh import batch_shards

GREEDY = Sampling()


class Answer(NamedTuple):
    """The new ids of a request, without the stop id that ended them."""

    key: Hashable
    ids: list[int]


class Generator:
    """A model that continues prompts."""

    def __init__(self, model: LoadedModel, slots: int, mesh: Mesh | None = None, stored_pictures: int = 64):
        """Makes a generator; compiles nothing yet.

        Args:
          model: its parameters are on the devices of the mesh.
          slots: answers that are continued at once.
          mesh: None for the device of the parameters.
          stored_pictures: pictures whose features are kept, at least.
        """
        self._model = model
        self._mesh = mesh
        shards = batch_shards(mesh) if mesh else 1
        self._count = multiple(slots, shards)
        self._rows = multiple(max(1, self._count // 4), shards)  # prompts that take slots at once
        self._pictures = PictureStore(model, self._rows, mesh, stored_pictures)

    @property
    def encoded(self) -> int:
        """How many pictures have been encoded so far."""
        return self._pictures.encoded

    def generate(
        self, requests: Iterable[Request], limits: Limits, sampling: Sampling = GREEDY, longest: int = 0
    ) -> Iterator[Answer]:
        """Continues every request.

        Args:
          requests: taken as slots become free. Requests about the same picture should follow one another.
          limits: when an answer ends.
          sampling: how tokens are chosen.
          longest: tokens of the longest prompt, if known; else the cache grows, and every size of it is compiled.

        Yields:
          Answers as they end.

        Raises:
          UserError: for an empty prompt.
        """
        run = _Run(limits, sampling, self._count)
        waiting = _Waiting(requests)
        if waiting.next:
            self._widen(run, multiple(longest, LENGTH_STEP) + limits.max_new)
        while True:
            while waiting.next and len(run.free) >= min(self._rows, self._count):
                self._fill(run, waiting.take(self._rows))
            if not run.taken:
                return
            leave = self._count - self._rows if waiting.next else 0
            with on(self._mesh):
                run.slots = device.advance(
                    self._model,
                    run.slots,
                    np.int32(limits.max_new),
                    np.int32(leave),
                    limits=limits,
                    sampling=sampling,
                )
            yield from run.ended()

    def _fill(self, run: _Run, requests: Sequence[Request]) -> None:
        """Puts at most as many requests as there are rows into free slots."""
        longest = max(len(request.tokens_L) for request in requests)
        width = multiple(longest, LENGTH_STEP)
        self._widen(run, width + run.limits.max_new)
        slots = [run.take(request.key) for request in requests]
        slots += [self._count] * (self._rows - len(requests))
        prompts = padded(requests, slots, width, self._pictures)
        features = self._pictures.features if any(request.pictures for request in requests) else None
        how = {"limits": run.limits, "sampling": run.sampling}
        with on(self._mesh):
            run.slots = device.fill(self._model, run.slots, prompts, features, **how)

    def _widen(self, run: _Run, columns: int) -> None:
        """Makes room for so many tokens, prompt and answer."""
        columns = _room(columns)
        with on(self._mesh):
            if run.slots is None:
                run.slots = device.empty_slots(self._model, self._count, columns, run.limits.max_new)
            elif columns > run.slots.cache.key.shape[2]:
                run.slots = device.widened(run.slots, columns)


@dataclasses.dataclass
class _Run:
    """One call of `generate`: its slots on the device, and the requests in them."""

    limits: Limits
    sampling: Sampling
    count: int
    slots: Any = None

    def __post_init__(self) -> None:
        self.free = deque(range(self.count))
        self.taken: dict[int, Hashable] = {}

    def take(self, key: Hashable) -> int:
        """A free slot for the request of this key."""
        slot = self.free.popleft()
        self.taken[slot] = key
        return slot

    def ended(self) -> Iterator[Answer]:
        """The answers that have ended; frees their slots."""
        active_B, new_BM = jax.device_get((self.slots.active_B, self.slots.new_BM))
        for slot in [slot for slot in sorted(self.taken) if not active_B[slot]]:
            self.free.append(slot)
            yield Answer(self.taken.pop(slot), [int(token) for token in new_BM[slot] if token >= 0])


class _Waiting:
    """An iterator of requests that can be looked at without taking one."""

    def __init__(self, requests: Iterable[Request]):
        self._source = iter(requests)
        self.next = list(itertools.islice(self._source, 1))

    def take(self, count: int) -> list[Request]:
        """The next requests, at most `count`."""
        taken = [*self.next, *itertools.islice(self._source, count - 1)]
        self.next = list(itertools.islice(self._source, 1))
        return taken


def _room(columns: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, .., so that a cache that grows is compiled for few sizes."""
    size = LENGTH_STEP
    while size < columns:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def generate(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    limits: Limits,
    *,
    batch_size: int = 1,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """The continuation of every prompt.

    Args:
      model: the model that is asked.
      prompts: in any order and of any lengths.
      limits: when an answer ends.
      batch_size: prompts that are continued together.
      sampling: how tokens are chosen; by default the most likely one. The seed of a prompt is its number.

    Returns:
      The new ids of each prompt, in the order of `prompts`.

    Raises:
      UserError: for an empty prompt.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    requests = (request_of(number, prompt) for number, prompt in enumerate(prompts))
    longest = max((len(prompt.tokens_L) for prompt in prompts), default=0)
    generator = Generator(model, min(batch_size, max(1, len(prompts))))
    for number, ids in generator.generate(requests, limits, sampling, longest):
        answers[int(str(number))] = ids
    return answers


def request_of(number: int, prompt: Prompt) -> Request:
    """A prompt whose pictures are decoded already, and are no other prompt's."""
    pictures = tuple(
        Picture((number, index), functools.partial(np.asarray, pixels_HWC))
        for index, pixels_HWC in enumerate(prompt.images_IHWC)
    )
    return Request(number, prompt.tokens_L, prompt.image_query_L, pictures, seed=number)
