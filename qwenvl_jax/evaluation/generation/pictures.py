"""Pictures as users name them, and pictures of questions, each decoded once for all questions in a row that show it."""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.parse
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np

from qwenvl_jax.data.images.decode import decode_into
from qwenvl_jax.data.images.exact import MAX_BYTES, Size
from qwenvl_jax.evaluation.generation.requests import Picture
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_ESCAPED = re.compile(r"\\(.)")

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


def spellings(written: str) -> list[str]:
    """The paths that a line may mean, the likeliest first: as it is written, or as a shell would read it.

    A terminal pastes a dropped file in quotes or with a backslash before each space, a browser as a `file://` address.
    """
    if written.startswith("file://"):
        return [urllib.parse.unquote(urllib.parse.urlsplit(written).path)]
    paths = [written]
    if len(written) > 1 and written[0] == written[-1] and written[0] in "'\"":
        paths.append(written[1:-1])
    elif "\\" in written:
        paths.append(_ESCAPED.sub(r"\1", written))
    return paths


def read_picture(written: str) -> bytes:
    """The bytes of the picture that a line names.

    Raises:
      UserError: if it is a web address or a folder, or the file does not exist or cannot be read.
    """
    if re.match(r"(?i)https?://", written):
        raise UserError("it is a web address; download the picture and name the file")
    for spelling in spellings(written):
        try:
            path = storage.path(spelling)
            if storage.is_folder(path):
                raise UserError("it is a folder; name one picture in it")
            return storage.read_bytes(path, 0, MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(error.strerror or str(error)) from None
        except (ValueError, RuntimeError) as error:  # a zero byte, or `~` of an unknown user
            raise UserError(str(error)) from None
    raise UserError("there is no such file")
