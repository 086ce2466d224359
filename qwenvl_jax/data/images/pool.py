"""Decoding the images of a batch in parallel: on threads, or in processes that write into memory shared with this one.

A process is a plain `python -m qwenvl_jax.data.images.worker`, so nothing of the program that trains is imported or
run in it. An image that crashes the decoder, or keeps it busy without end, costs two workers and counts as corrupt.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import mmap
import multiprocessing.connection
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenvl_jax.data.images.decode import DECODERS
from qwenvl_jax.data.images.exact import Size
from qwenvl_jax.runtime.errors import UserError

# How long a process may take for one image. The largest that are decoded take three seconds of processor time, which
# a busy machine does not stretch; the other limit is for processes that hang without computing.
PROCESSOR_SECONDS = 60.0
SECONDS = 600.0

_TICK = 0.5  # seconds between two looks at a process that has not answered yet
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

    def __init__(self, image_size: int, decoder: str):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "qwenvl_jax.data.images.worker"]
            command += [str(theirs.fileno()), str(image_size), decoder]
            paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            environment = os.environ | paths | _MALLOC
            self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        # A process that hangs does not even read what it is sent.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", math.ceil(SECONDS), 0))
        self._connection = multiprocessing.connection.Connection(ours.detach())

    def decode(
        self,
        images: Sequence[bytes],
        stated: Sequence[Size | None],
        buffer: PixelBuffer,
        first: int,
        ending: threading.Event,
    ) -> str:
        """Decodes images into a buffer from index `first` on; returns the error, "" if there is none.

        Raises:
          MemoryError: if the process has none left.
          TimeoutError: if it takes too long, or `ending` is set.
          EOFError, OSError: if it has died.
        """
        self._connection.send((buffer.name, first, images, stated))
        since: tuple[float, float] | None = None
        while not self._connection.poll(_TICK):
            now = (self._processor_seconds(), time.monotonic())
            since = since or now
            computed = now[0] - since[0]
            passed = now[1] - since[1]
            if computed > PROCESSOR_SECONDS * len(images) or passed > SECONDS * len(images) or ending.is_set():
                raise TimeoutError
        answer = self._connection.recv()
        if isinstance(answer, MemoryError):
            raise answer
        return answer

    def _processor_seconds(self) -> float:
        """Processor time of the process so far."""
        try:
            after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def close(self, *, kill: bool = False) -> None:
        """Ends the process and waits for it."""
        self._connection.close()
        if not kill:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            self.process.kill()
        self.process.wait()


class DecodePool:
    """Decodes images to squares of `image_size` pixels.

    Args:
      workers: processes; 0 decodes on threads of this process.
      image_size: H = W.
      decoder: a key of `decode.DECODERS`.

    Raises:
      UserError: for workers on a system without memory files (any but Linux).
    """

    def __init__(self, workers: int, image_size: int, decoder: str):
        if workers and not hasattr(os, "memfd_create"):
            raise UserError("config.data.decode_workers needs Linux; set it to 0 to decode on threads")
        self._workers = workers
        self._size = image_size
        self._decoder = decoder
        self._threads = concurrent.futures.ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), "decode")
        self._free: list[_Memory] = []
        self._thread_state = threading.local()
        self._started: list[_Worker] = []
        self._ending = threading.Event()

    def buffer(self, shape: tuple[int, ...]) -> PixelBuffer | None:
        """Shared pixels for `submit`; None if the pool decodes on threads.

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
        self,
        images: Sequence[bytes],
        stated: Sequence[Size | None],
        pixels_IHWC: np.ndarray,
        buffer: PixelBuffer | None,
        first: int,
    ) -> concurrent.futures.Future[str]:
        """Decodes into the images of a batch, from index `first` on.

        Args:
          images: encoded.
          stated: the size that each image must have; None for any.
          pixels_IHWC: of the batch; the buffer's array, if there is one.
          buffer: from `buffer`.
          first: index of the first image.

        Returns:
          The error, "" if there is none.
        """
        if not images:
            return finished("")
        if self._ending.is_set():
            return finished("the decoder was closed")
        if buffer is None:
            return self._threads.submit(decode_all, images, stated, pixels_IHWC[first:], self._decoder)
        return self._threads.submit(self._remotely, images, stated, buffer, first)

    def _remotely(self, images: Sequence[bytes], stated: Sequence[Size | None], buffer: PixelBuffer, first: int) -> str:
        """Decodes in this thread's process. If the process fails, a new one tries once more.

        The failure may not be caused by the image. Only the limit of processor time depends on the machine, so it too
        has two tries.
        """
        wrong = ""
        for _ in range(2):
            if self._ending.is_set():
                return "the decoder was closed"
            if not hasattr(self._thread_state, "worker"):
                self._thread_state.worker = _Worker(self._size, self._decoder)
                self._started.append(self._thread_state.worker)
            try:
                return self._thread_state.worker.decode(images, stated, buffer, first, self._ending)
            except TimeoutError:
                wrong = f"it is not decoded after {PROCESSOR_SECONDS:g} seconds of processor time"
            except (EOFError, OSError):
                wrong = "the decoder crashes on it"
            self._started.remove(self._thread_state.worker)
            self._thread_state.worker.close(kill=True)
            del self._thread_state.worker
        return wrong

    def processes(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.process.pid for worker in self._started]

    def stop_waiting(self) -> None:
        """Gives up on images that take long, because `close` is about to be called."""
        self._ending.set()

    def close(self) -> None:
        """Ends threads and processes."""
        self._ending.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._started:
            worker.close()
        self._started.clear()


def finished(wrong: str) -> concurrent.futures.Future[str]:
    """A finished result of `DecodePool.submit`."""
    future: concurrent.futures.Future[str] = concurrent.futures.Future()
    future.set_result(wrong)
    return future


def decode_all(
    images: Sequence[bytes], stated: Sequence[Size | None], pixels_IHWC: np.ndarray, decoder: str = "stretch"
) -> str:
    """Decodes images into the first entries of `pixels_IHWC`; returns the error, "" if there is none.

    Args:
      images: encoded.
      stated: the size that each image must have; None for any.
      pixels_IHWC: at least as many entries as there are images.
      decoder: a key of `decode.DECODERS`.
    """
    try:
        for index, (payload, size) in enumerate(zip(images, stated, strict=True)):
            DECODERS[decoder](payload, pixels_IHWC[index], size)
    except UserError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # any other exception of a decoder is caused by the image
        return f"the decoder fails on it ({error!r})"
    return ""
