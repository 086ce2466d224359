"""Prompts for a model, their pictures, and the features of pictures that stay on the devices.

Shape suffixes: R prompts that are computed at once, L prompt tokens, I images, H pixels of a side.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.evaluation.generation import slots as device
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError

LENGTH_STEP = 32  # tokens to which prompts are rounded up


class Picture(NamedTuple):
    """A picture of a prompt.

    Attributes:
      key: equal for equal pictures; while the features of a key are stored, its pixels are not asked for again.
      pixels: gives uint8 [H, H, 3].
    """

    key: Hashable
    pixels: Callable[[], np.ndarray]


class Request(NamedTuple):
    """A prompt to continue.

    Attributes:
      key: of the answer.
      tokens_L: int32 ids.
      image_query_L: int32, picture * queries + query for the slots of pictures, -1 elsewhere.
      pictures: in the order of their slots.
      seed: of sampling.
    """

    key: Hashable
    tokens_L: np.ndarray
    image_query_L: np.ndarray
    pictures: Sequence[Picture] = ()
    seed: int = 0


class PictureStore:
    """The features of the pictures used last, on the devices; a picture that is stored is not encoded again.

    Attributes:
      features: [C, Q, D], see `slots.empty_features`; None before the first picture.
      encoded: how many pictures have been encoded so far.
      queries: Q, features of a picture.
    """

    def __init__(self, model: LoadedModel, rows: int, mesh: Mesh | None, capacity: int):
        """Stores nothing yet.

        Args:
          model: encodes the pictures.
          rows: pictures that are encoded at once.
          mesh: None for the device of the model.
          capacity: pictures that are kept, at least.
        """
        self._model = model
        self._rows = rows
        self._mesh = mesh
        self._stored: OrderedDict[Hashable, int] = OrderedDict()  # index by key, the one used longest ago first
        self._capacity = max(capacity, rows)
        self.queries = model.config.resampler.queries
        self.features: jax.Array | None = None
        self.encoded = 0

    def allocated(self) -> jax.Array:
        """The features, with room for them if no picture has been stored yet."""
        if self.features is None:
            with on(self._mesh):
                self.features = device.empty_features(self._model, self._capacity)
        return self.features

    def indices(self, pictures: Sequence[Picture]) -> dict[Hashable, int]:
        """Stores the features of pictures that are not stored yet; the index of each by its key."""
        wanted = {picture.key: picture for picture in pictures}
        for key in wanted.keys() & self._stored.keys():
            self._stored.move_to_end(key)
        missing = [picture for key, picture in wanted.items() if key not in self._stored]
        if len(wanted) > self._capacity:
            self._capacity = multiple(len(wanted), self._rows)
            self._stored.clear()
            self.features = None
            missing = list(wanted.values())
        for first in range(0, len(missing), self._rows):
            self._store(missing[first : first + self._rows])
        return {key: self._stored[key] for key in wanted}

    def _store(self, pictures: Sequence[Picture]) -> None:
        pixels = [picture.pixels() for picture in pictures]
        images_IHWC = np.zeros((self._rows, *pixels[0].shape), np.uint8)
        index_I = np.full(self._rows, self._capacity, np.int32)
        for row, (picture, pixels_HWC) in enumerate(zip(pictures, pixels, strict=True)):
            images_IHWC[row] = pixels_HWC
            free = len(self._stored) if len(self._stored) < self._capacity else self._stored.popitem(last=False)[1]
            self._stored[picture.key] = index_I[row] = free
        features = self.allocated()
        with on(self._mesh):
            self.features = device.store(self._model, features, images_IHWC, index_I)
        self.encoded += len(pictures)


def padded(requests: Sequence[Request], slots: Sequence[int], width: int, pictures: PictureStore) -> device.Prompts:
    """Prompts as the devices take them; encodes their pictures.

    Args:
      requests: at most R.
      slots: of each row; R is their number.
      width: L, at least as many tokens as the longest prompt has.
      pictures: where their features are stored.

    Raises:
      UserError: for an empty prompt.
    """
    rows = len(slots)
    indices = pictures.indices([picture for request in requests for picture in request.pictures])
    tokens_RL = np.zeros((rows, width), np.int32)
    image_slot_RL = np.full((rows, width), -1, np.int32)
    length_R = np.zeros(rows, np.int32)
    seed_R = np.zeros(rows, np.uint32)
    for row, request in enumerate(requests):
        length = len(request.tokens_L)
        if not length:
            raise UserError("a prompt without any token cannot be continued; give it some text or an image")
        length_R[row] = length
        seed_R[row] = request.seed
        tokens_RL[row, :length] = request.tokens_L
        if request.pictures:
            stored = np.array([indices[picture.key] for picture in request.pictures], np.int32)
            picture_L, query_L = np.divmod(request.image_query_L, pictures.queries)
            slots_L = stored[np.maximum(picture_L, 0)] * pictures.queries + query_L
            image_slot_RL[row, :length] = np.where(request.image_query_L >= 0, slots_L, -1)
    arrays: list[Any] = [tokens_RL, image_slot_RL, length_R, seed_R, np.array(slots, np.int32)]
    return device.Prompts(*arrays)  # NumPy arrays: the same in all processes


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Computes on a mesh, or on the device of the arguments."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def multiple(count: int, of: int) -> int:
    """The next multiple, at least one."""
    return max(1, -(-count // of)) * of


def room(tokens: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, .., so that lengths that vary are compiled for few sizes."""
    size = LENGTH_STEP
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
