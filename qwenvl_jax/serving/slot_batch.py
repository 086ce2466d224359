"""The slots of an engine on the devices: prompts are put in, all answers go on together, and what is new is fetched.

All shapes are fixed, so that an answer is a function of its own prompt and options alone: the slots, the columns of the
cache, one prompt at a time per shard of the mesh, one picture likewise. Prompts alone vary, in a few widths.

Shape suffixes: B slots, M new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

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
from qwenvl_jax.evaluation.generation.sampling import Limits, RowOptions
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.serving.options import AnswerOptions
from qwenvl_jax.sharding.mesh import batch_shards

LEAST_WIDTH = 64  # tokens; prompts that are shorter are padded to it

_FREE = AnswerOptions()


class NewTokens(NamedTuple):
    """What is new in a slot.

    Attributes:
      ids: that were not known yet, without the stop id that ended the answer.
      ended: "" while the answer goes on, else "stop" or "length".
    """

    ids: list[int]
    ended: str


class SlotBatch:
    """The slots of one model. Used on one thread.

    Attributes:
      count: of slots.
      rows: prompts that are put in at once, at most.
      asked: pictures of all prompts so far.
    """

    def __init__(
        self,
        model: LoadedModel,
        slots: int,
        context: int,
        stop_ids: tuple[int, ...],
        stored_pictures: int,
        mesh: Mesh | None = None,
    ):
        """Describes the slots; nothing is compiled or allocated yet.

        Args:
          model: its parameters are on the devices of the mesh.
          slots: their number, rounded up to the shards of the mesh.
          context: tokens of the longest prompt with its answer.
          stop_ids: that end an answer.
          stored_pictures: pictures whose features are kept, at least.
          mesh: of one process; None for the device of the parameters.
        """
        self._model = model
        self._mesh = mesh
        self.rows = batch_shards(mesh) if mesh else 1
        self.count = multiple(slots, self.rows)
        self.asked = 0
        self._context = context
        self._columns = multiple(context, LENGTH_STEP)
        self._stored_pictures = stored_pictures
        self._limits = Limits(max_new_tokens=self._columns, stop_ids=stop_ids)
        self._advance = device.advance_on(mesh)
        self._encoded_before = 0
        self._fresh()

    def _fresh(self) -> None:
        self._state: Any = None
        self._pictures = PictureStore(self._model, self.rows, self._mesh, self._stored_pictures)
        self._options = [(_FREE, 0)] * self.count

    def clear(self) -> None:
        """Forgets all slots and pictures; after a failure their arrays may be lost half-way."""
        self._encoded_before = self.encoded
        self._fresh()

    @property
    def encoded(self) -> int:
        """How many pictures have been encoded so far; those asked for without it were stored."""
        return self._encoded_before + self._pictures.encoded

    def width(self, request: Request) -> int:
        """Tokens to which a prompt is padded. Only prompts of the same width may be put in together."""
        return min(room(max(LEAST_WIDTH, len(request.tokens_L))), self._columns)

    def put(self, slots: Sequence[int], requests: Sequence[Request], options: Sequence[AnswerOptions]) -> None:
        """Reads prompts and chooses the first token of each answer.

        Args:
          slots: free ones, at most `rows`.
          requests: a prompt for each, all of one width; at most `stored_pictures` pictures in all.
          options: how each answer is written.
        """
        width = self.width(requests[0])
        assert all(self.width(request) == width for request in requests)
        state = self._allocated()
        empty = self.rows - len(slots)
        seeded = [request._replace(seed=each.seed % 2**32) for request, each in zip(requests, options, strict=True)]
        prompts = padded(seeded, [*slots, *[self.count] * empty], width, self._pictures)
        limited = [
            (each, min(each.max_new_tokens, self._context - len(request.tokens_L)))
            for request, each in zip(requests, options, strict=True)
        ]
        for slot, each in zip(slots, limited, strict=True):
            self._options[slot] = each
        rows = _row_options([*limited, *[(_FREE, 0)] * empty])
        self.asked += sum(len(request.pictures) for request in requests)
        features = self._pictures.allocated()
        with on(self._mesh):
            self._state = device.fill(
                self._model, state, prompts, features, rows, limits=self._limits, sampling=None
            )  # fmt: skip

    def advance(self, steps: int) -> None:
        """Continues all answers by up to so many tokens."""
        arguments = (np.int32(steps), np.int32(0), _row_options(self._options))
        with on(self._mesh):
            self._state = self._advance(
                self._model, self._state, *arguments, limits=self._limits, sampling=None
            )  # fmt: skip

    def read(self, told: Mapping[int, int]) -> Iterator[tuple[int, NewTokens]]:
        """What is new in slots; waits for the devices.

        Args:
          told: for each slot that is looked at, how many of its tokens are known.
        """
        active_B, count_B, new_BM = jax.device_get((self._state.active_B, self._state.count_B, self._state.new_BM))
        for slot, known in told.items():
            ids = [token for token in new_BM[slot, known : count_B[slot]].tolist() if token >= 0]
            by_id = count_B[slot] > known + len(ids)  # a stop id is counted and not kept
            yield slot, NewTokens(ids, "" if active_B[slot] else "stop" if by_id else "length")

    def release(self, slot: int) -> None:
        """Frees a slot; an answer in it ends with the next token."""
        self._options[slot] = (_FREE, 0)

    def widths(self) -> list[int]:
        """All widths that a prompt can have."""
        widths = [LEAST_WIDTH]
        while widths[-1] < self._columns:
            widths.append(room(widths[-1] + 1))
        return sorted({min(width, self._columns) for width in widths})

    def compile(self, width: int, image_size: int) -> None:
        """Compiles what a prompt of this width with a picture needs, by answering one. No slot may be taken."""
        blank = Picture("blank", lambda: np.zeros((image_size, image_size, 3), np.uint8))
        encoded = self.encoded
        self._pictures.indices([blank])
        self._encoded_before -= self.encoded - encoded  # nobody asked for it
        length = min(width, self._context - 2)
        request = Request(0, np.zeros(length, np.int32), np.full(length, -1, np.int32))
        self.put([0], [request], [AnswerOptions(max_new_tokens=2)])
        self.advance(1)
        jax.block_until_ready(self._state)
        self.release(0)

    def _allocated(self) -> device.Slots:
        if self._state is None:
            with on(self._mesh):
                self._state = device.empty_slots(self._model, self.count, self._columns, max_new_tokens=self._columns)
        return self._state


def _row_options(options: Sequence[tuple[AnswerOptions, int]]) -> RowOptions:
    """Options and the largest number of new tokens, as the devices take them."""
    arrays: list[Any] = [
        np.array([most for _, most in options], np.int32),
        np.array([each.temperature for each, _ in options], np.float32),
        np.array([each.top_k for each, _ in options], np.int32),
        np.array([each.top_p for each, _ in options], np.float32),
    ]
    return RowOptions(*arrays)
