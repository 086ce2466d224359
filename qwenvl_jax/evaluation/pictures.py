"""Pictures of questions, each decoded once for all questions that show it one after the other."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np

from qwenvl_jax.data.images.decode import decode_into
from qwenvl_jax.data.images.exact import Size
from qwenvl_jax.evaluation.generate import Picture

REMEMBERED = 128  # pictures; of 448 pixels they take 77 MB


class Pictures:
    """Decodes pictures to squares of `image_size` pixels, and remembers the newest ones. For use on several threads."""

    def __init__(self, image_size: int):
        self._size = image_size
        self._lock = threading.Lock()
        self._decoded: OrderedDict[tuple[bytes, Size | None], Future[np.ndarray]] = OrderedDict()

    def picture(self, encoded: bytes, stated: Size | None) -> Picture:
        """A picture that is decoded already. Its key is a digest of the encoded bytes.

        Args:
          encoded: the picture.
          stated: the size that it must have; None for any.

        Raises:
          UserError: if it cannot be decoded or has another size.
        """
        digest = hashlib.sha256(encoded).digest()
        key = (digest, stated)
        with self._lock:
            is_new = key not in self._decoded
            pixels = self._decoded.setdefault(key, Future())
            self._decoded.move_to_end(key)
            if len(self._decoded) > REMEMBERED:
                self._decoded.popitem(last=False)
        if is_new:
            try:
                pixels_HWC = np.empty((self._size, self._size, 3), np.uint8)
                decode_into(encoded, pixels_HWC, stated=stated)
                pixels.set_result(pixels_HWC)
            except BaseException as error:  # whoever waits for it must learn of it
                pixels.set_exception(error)
        pixels.result()
        return Picture(digest, pixels.result)
