"""Decoding the images of a batch in parallel: on threads, or in processes that write into memory shared with this one.

A process is a plain `python -m qwenvl_jax.data.decode_worker`, so nothing of the program that trains is imported or
run in it, and an image that crashes the decoder costs one worker and counts as corrupt.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import mmap
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwenvl_jax.data.image import decode_into
from qwenvl_jax.runtime.errors import UserError

_numbers = itertools.count()

# Freed memory stays with a worker: an image's buffers, mapped anew each time, would cost a fifth of its time.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}


class _Memory:
    """Memory that other processes can map; `name` says where, with a number that no other memory has."""

    def __init__(self, size: int):
        descriptor = os.memfd_create("qwenvl_jax pixels")
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, size)
        self.mapped = mmap.mmap(descriptor, size)
        self.name = (next(_numbers), f"/proc/{os.getpid()}/fd/{descriptor}")


class PixelBuffer(NamedTuple):
    """Zeroed pixels [..., H, W, 3] uint8 that decoding processes can write, and where those find them."""

    array: np.ndarray
    name: tuple[int, str]


class _Worker:
    """A decoding process and the socket to it."""

    def __init__(self, image_size: int, draft: bool):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "qwenvl_jax.data.decode_worker"]
            command += [str(theirs.fileno()), str(image_size), str(int(draft))]
            paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            environment = os.environ | paths | _MALLOC
            self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        self._connection = multiprocessing.connection.Connection(ours.detach())

    def decode(self, images: Sequence[bytes], buffer: PixelBuffer, first: int) -> str:
        """Has images decoded to places `first`.. of a buffer; returns what is wrong with them, or ''.

        Raises:
          EOFError, OSError: if the process has died.
        """
        self._connection.send((buffer.name, first, images))
        return self._connection.recv()

    def close(self) -> None:
        """Ends the process and waits for it."""
        self._connection.close()
        self.process.wait()


class DecodePool:
    """Decodes images to squares of `image_size` pixels.

    Args:
      workers: processes; 0 decodes on threads of this process.
      image_size: H = W.
      draft: see `image.decode_into`.

    Raises:
      UserError: for workers on a system without memory files (any but Linux).
    """

    def __init__(self, workers: int, image_size: int, draft: bool):
        if workers and not hasattr(os, "memfd_create"):
            raise UserError("config.data.decode_workers needs Linux; set it to 0 to decode on threads")
        self._workers, self._size, self._draft = workers, image_size, draft
        self._threads = concurrent.futures.ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), "decode")
        self._free: list[_Memory] = []
        self._own = threading.local()
        self._started: list[_Worker] = []

    def buffer(self, shape: tuple[int, ...]) -> PixelBuffer | None:
        """Shared pixels for `submit`; None where the pool needs none.

        Once nothing refers to the array any more, a later buffer of this pool takes its memory: fresh memory costs
        a fault for every page. All buffers of a pool have one shape.
        """
        if not self._workers:
            return None
        memory = self._free.pop() if self._free else _Memory(math.prod(shape))
        pixels = np.frombuffer(memory.mapped, np.uint8)
        weakref.finalize(pixels, self._free.append, memory).atexit = False
        pixels[:] = 0
        return PixelBuffer(pixels.reshape(shape), memory.name)

    def submit(
        self, images: Sequence[bytes], pixels_IHWC: np.ndarray, buffer: PixelBuffer | None, first: int
    ) -> concurrent.futures.Future[str]:
        """Decodes into places `first`.. of all images of a batch.

        Args:
          images: encoded.
          pixels_IHWC: of the batch; the buffer's array, if there is one.
          buffer: from `buffer`.
          first: place of the first image.

        Returns:
          What is wrong with the images, or ''.
        """
        if buffer is None:
            return self._threads.submit(decode_all, images, pixels_IHWC[first:], self._draft)
        return self._threads.submit(self._remotely, images, buffer, first)

    def _remotely(self, images: Sequence[bytes], buffer: PixelBuffer, first: int) -> str:
        """Asks this thread's process. One that dies is replaced and asked once more: it may not have been the image."""
        for _ in range(2):
            if not hasattr(self._own, "worker"):
                self._own.worker = _Worker(self._size, self._draft)
                self._started.append(self._own.worker)
            try:
                return self._own.worker.decode(images, buffer, first)
            except (EOFError, OSError):
                self._started.remove(self._own.worker)
                self._own.worker.close()
                del self._own.worker
        return "the decoder crashes on it"

    def processes(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.process.pid for worker in self._started]

    def close(self) -> None:
        """Ends threads and processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._started:
            worker.close()
        self._started.clear()


def decode_all(images: Sequence[bytes], pixels_IHWC: np.ndarray, draft: bool) -> str:
    """Decodes images into the first places of `pixels_IHWC`; returns what is wrong with one, or ''."""
    try:
        for place, payload in enumerate(images):
            decode_into(payload, pixels_IHWC[place], draft)
    except UserError as error:
        return str(error)
    return ""
