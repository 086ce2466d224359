"""A process that decodes images for `pool.DecodePool`: DESCRIPTOR of a socket, IMAGE_SIZE, DECODER.

It ends when the other side closes the socket, not by a signal to the whole process group (Ctrl-C, preemption), which
the training process answers in its own time.
"""

from __future__ import annotations

import collections
import mmap
import multiprocessing.connection
import signal
import sys

import numpy as np

from qwenvl_jax.data.images.pool import decode_all

_MAPPED = 16  # buffers kept mapped; as many are used in turn as there are batches alive at once


def main(descriptor: int, image_size: int, decoder: str) -> None:
    """Decodes groups of images until the parent process closes the connection.

    Args:
      descriptor: of the connection to the parent process.
      image_size: side of the decoded images in pixels.
      decoder: a key of `decode.DECODERS`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = multiprocessing.connection.Connection(descriptor)
    buffers: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    while True:
        try:
            (number, path), first, images, stated = connection.recv()
        except (EOFError, OSError):
            return
        if number not in buffers:
            with open(path, "r+b") as file:
                pixels = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
            buffers[number] = pixels.reshape(-1, image_size, image_size, 3)
            if len(buffers) > _MAPPED:
                buffers.popitem(last=False)
        try:
            answer: str | MemoryError = decode_all(images, stated, buffers[number][first:], decoder)
        except MemoryError:  # not the fault of an image
            answer = MemoryError("a decoding process has no memory left")
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
