"""Continues prompts in slots: as answers end, the next prompts take their slots, and each picture is encoded once.

    generator = Generator(model, slots=32, mesh=mesh)
    limits = Limits(max_new_tokens=10, stop_ids=(151643,))
    for answer in generator.generate(requests, limits):    # in the order of their ends
        print(answer.key, answer.ids)

`search` does the same by beam search, and `stream` yields the tokens of one answer as they come.

A generator works on any mesh, of one process or of all. All processes of a mesh make the same calls with the same
requests; every one of them gets all answers. Lengths are rounded up, so that a whole benchmark needs few compilations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.evaluation.generation import beam_slots
from qwenvl_jax.evaluation.generation import slots as device
from qwenvl_jax.evaluation.generation.requests import (
    LENGTH_STEP,
    Picture,
    PictureStore,
    Request,
    multiple,
    on,
    padded,
    room,
)
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits, Sampling
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.sharding.mesh import batch_shards

GREEDY = Sampling()


class Continuation(NamedTuple):
    """The new ids of a request, without the stop id that ended them."""

    key: Hashable
    ids: list[int]


class Beam(NamedTuple):
    """An answer of a beam search.

    Attributes:
      ids: the new ids, without the stop id that ended them.
      score: the sum of the log-probabilities of its tokens, the stop id included, with the length penalty.
    """

    ids: list[int]
    score: float


class Beams(NamedTuple):
    """The answers to a request, the best first."""

    key: Hashable
    beams: list[Beam]


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
    ) -> Iterator[Continuation]:
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
        program = _Greedy(limits, sampling, self._mesh)
        yield from self._all(requests, program, self._count, longest)

    def search(
        self, requests: Iterable[Request], limits: Limits, search: BeamSearch, longest: int = 0
    ) -> Iterator[Beams]:
        """Continues every request by beam search. As many beams are continued at once as there are slots.

        Args:
          requests: as for `generate`; their seeds are not used.
          limits: when an answer ends.
          search: the rules.
          longest: as for `generate`.

        Yields:
          As many answers per request as there are beams, as searches end.

        Raises:
          UserError: for an empty prompt.
        """
        shards = batch_shards(self._mesh) if self._mesh else 1
        groups = multiple(self._count // search.beams, shards)
        yield from self._all(requests, _BeamSearch(limits, search), groups, longest)

    def stream(
        self, request: Request, limits: Limits, sampling: Sampling = GREEDY, together: int = 4
    ) -> Iterator[list[int]]:
        """Continues one request and yields its new ids as they come.

        Args:
          request: the prompt.
          limits: when the answer ends.
          sampling: how tokens are chosen.
          together: tokens that the devices compute before they are fetched; the first comes alone.

        Yields:
          New ids, at least one at a time; together they are the answer of `generate`.

        Raises:
          UserError: for an empty prompt.
        """
        run = _Run(_Greedy(limits, sampling, self._mesh), self._count)
        self._fill(run, [request])
        [slot] = run.taken
        told = 0
        while True:
            new_M, active = run.program.so_far(run.state, slot)
            if len(new_M) > told:
                yield new_M[told:]
                told = len(new_M)
            if not active:
                return
            self._advance(run, min(together, limits.max_new_tokens), 0)

    def _all(self, requests: Iterable[Request], program: Any, count: int, longest: int) -> Iterator[Any]:
        """Continues every request by a program on `count` slots."""
        run = _Run(program, count)
        rows = min(self._rows, count)
        waiting = _Waiting(requests)
        if waiting.next:
            self._widen(run, multiple(longest, LENGTH_STEP) + program.limits.max_new_tokens)
        while True:
            while waiting.next and len(run.free) >= rows:
                self._fill(run, waiting.take(rows))
            if not run.taken:
                return
            self._advance(run, program.limits.max_new_tokens, count - rows if waiting.next else 0)
            yield from run.ended()

    def _advance(self, run: _Run, steps: int, leave: int) -> None:
        with on(self._mesh):
            run.state = run.program.advance(self._model, run.state, np.int32(steps), np.int32(leave))

    def _fill(self, run: _Run, requests: Sequence[Request]) -> None:
        """Puts at most as many requests as there are rows into free slots."""
        longest = max(len(request.tokens_L) for request in requests)
        width = multiple(longest, LENGTH_STEP)
        self._widen(run, width + run.program.limits.max_new_tokens)
        slots = [run.take(request.key) for request in requests]
        slots += [run.count] * (min(self._rows, run.count) - len(requests))
        prompts = padded(requests, slots, width, self._pictures)
        features = self._pictures.features if any(request.pictures for request in requests) else None
        with on(self._mesh):
            run.state = run.program.fill(self._model, run.state, prompts, features)

    def _widen(self, run: _Run, columns: int) -> None:
        """Makes room for so many tokens, prompt and answer."""
        columns = room(columns)
        with on(self._mesh):
            if run.state is None:
                run.state = run.program.empty(self._model, run.count, columns)
            elif columns > run.state.cache.columns:
                run.state = device.widened(run.state, columns)


class _Greedy:
    """How slots are computed whose next token is the most likely one, or is drawn."""

    def __init__(self, limits: Limits, sampling: Sampling, mesh: Mesh | None):
        self.limits = limits
        how = {"limits": limits, "sampling": sampling}
        self.empty = functools.partial(device.empty_slots, max_new_tokens=limits.max_new_tokens)
        self.fill = functools.partial(device.fill, **how)
        self.advance = functools.partial(device.advance_on(mesh), **how)

    def so_far(self, state: device.Slots, slot: int) -> tuple[list[int], bool]:
        """The ids of an answer, and whether it goes on."""
        active_B, new_BM = jax.device_get((state.active_B, state.new_BM))
        return _without_padding(new_BM[slot]), bool(active_B[slot])

    def ended(self, state: device.Slots, taken: Mapping[int, Hashable]) -> Iterator[tuple[int, Continuation]]:
        """The slots that have ended, with their answers."""
        active_B, new_BM = jax.device_get((state.active_B, state.new_BM))
        for slot in sorted(taken):
            if not active_B[slot]:
                yield slot, Continuation(taken[slot], _without_padding(new_BM[slot]))


class _BeamSearch:
    """How groups of slots are computed that continue beams."""

    def __init__(self, limits: Limits, search: BeamSearch):
        self.limits = limits
        how = {"limits": limits, "search": search}
        self.empty = functools.partial(beam_slots.empty_beams, max_new_tokens=limits.max_new_tokens, search=search)
        self.fill = functools.partial(beam_slots.fill_beams, **how)
        self.advance = functools.partial(beam_slots.advance_beams, **how)

    def ended(self, state: beam_slots.BeamSlots, taken: Mapping[int, Hashable]) -> Iterator[tuple[int, Beams]]:
        """The groups that have ended, with their answers."""
        fetched = (state.active_G, state.answers_GKM, state.answer_scores_GK)
        active_G, answers_GKM, scores_GK = jax.device_get(fetched)
        for group in sorted(taken):
            if not active_G[group]:
                answers = zip(answers_GKM[group], scores_GK[group], strict=True)
                yield group, Beams(taken[group], [Beam(_without_padding(ids), float(score)) for ids, score in answers])


def _without_padding(ids_M: np.ndarray) -> list[int]:
    return [int(token) for token in ids_M if token >= 0]


@dataclasses.dataclass
class _Run:
    """One call of a generator: its slots on the devices, and the requests in them."""

    program: Any
    count: int
    state: Any = None

    def __post_init__(self) -> None:
        self.free = deque(range(self.count))
        self.taken: dict[int, Hashable] = {}

    def take(self, key: Hashable) -> int:
        """A free slot for the request of this key."""
        slot = self.free.popleft()
        self.taken[slot] = key
        return slot

    def ended(self) -> Iterator[Any]:
        """The answers that have ended; frees their slots."""
        for slot, answer in list(self.program.ended(self.state, self.taken)):
            self.free.append(slot)
            del self.taken[slot]
            yield answer


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
    ids_of: dict[Hashable, list[int]] = {}
    requests = (request_of(number, prompt) for number, prompt in enumerate(prompts))
    longest = max((len(prompt.tokens_L) for prompt in prompts), default=0)
    generator = Generator(model, min(batch_size, max(1, len(prompts))))
    for number, ids in generator.generate(requests, limits, sampling, longest):
        ids_of[number] = ids
    return [ids_of[number] for number in range(len(prompts))]


def request_of(number: int, prompt: Prompt) -> Request:
    """A prompt whose pictures are decoded already, and are no other prompt's."""
    pictures = tuple(
        Picture((number, index), functools.partial(np.asarray, pixels_HWC))
        for index, pixels_HWC in enumerate(prompt.images_IHWC)
    )
    return Request(number, prompt.tokens_L, prompt.image_query_L, pictures, seed=number)
