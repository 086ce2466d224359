"""A child process that reads hostile documents, so that its crash or hang costs one page and never the run.

The parent sends a request, one JSON object per line, and gets a JSON object and bytes back:

    worker = Worker("data_pipelines.ocr.pdf_worker")
    answer, payload = worker.ask({"file": "a.pdf", "page": 0}, timeout_s=60)

A child's module calls `serve(answer)`. Nothing of a document is ever unpickled or executed in the parent.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Answer = tuple[dict[str, Any], bytes]

_CRASHED = "renderer crashed"
_MOST_BYTES = 1 << 29  # of an answer
_idle: dict[str, collections.deque[Worker]] = collections.defaultdict(collections.deque)
_lock = threading.Lock()


class WorkerFailed(Exception):
    """The child crashed, or did not answer in time; `reason` says which in a few words."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class Worker:
    """One child process, which is started at the first request and again after a failure.

    Args:
      module: its main module, which calls `serve`.
    """

    def __init__(self, module: str):
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Answer:
        """The child's answer.

        If the child ends, a new one is asked once more: the first may have been killed from outside, for example
        because the memory of the machine ran out, and the answer should depend on the document alone.

        Raises:
          WorkerFailed: if both end, or one does not answer in time; it is killed with all its children.
        """
        try:
            return self._ask_once(request, timeout_s)
        except WorkerFailed as error:
            if error.reason != _CRASHED:
                raise
        return self._ask_once(request, timeout_s)

    def _ask_once(self, request: dict[str, Any], timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        try:
            process = self._started()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            header, payload = self._header(deadline)
            answer = json.loads(header)
            payload += self._read(answer.pop("bytes") - len(payload), deadline)
        except TimeoutError:
            self.close()
            raise WorkerFailed("renderer took too long", f"more than {timeout_s} s") from None
        except (OSError, ValueError, EOFError):
            self.close()
            raise WorkerFailed(_CRASHED) from None
        except BaseException:
            self.close()
            raise
        return answer, payload

    def close(self) -> None:
        """Ends the child and its children."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        return self._process

    def _header(self, deadline: float) -> tuple[bytes, bytes]:
        """The first line of an answer, and the beginning of its payload that came with it."""
        parts: list[bytes] = []
        length = 0
        while not parts or b"\n" not in parts[-1]:
            parts.append(self._part(1 << 20, deadline))
            length += len(parts[-1])
            if length > _MOST_BYTES:
                raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
        header, _, payload = b"".join(parts).partition(b"\n")
        return header, payload

    def _read(self, count: int, deadline: float) -> bytes:
        if not 0 <= count <= _MOST_BYTES:
            raise ValueError(f"an answer of {count} bytes")
        parts = []
        while count:
            parts.append(self._part(min(count, 1 << 20), deadline))
            count -= len(parts[-1])
        return b"".join(parts)

    def _part(self, most: int, deadline: float) -> bytes:
        """At least one byte of what the child has written, and at most so many."""
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(descriptor, most)
        if not part:
            raise EOFError
        return part


@contextlib.contextmanager
def lent(module: str) -> Iterator[Worker]:
    """A worker for the block. It stays alive afterwards and serves the next block in any thread of this process."""
    with _lock:
        worker = _idle[module].pop() if _idle[module] else Worker(module)
    try:
        yield worker
    finally:
        with _lock:
            _idle[module].append(worker)


def serve(answer: Callable[[dict[str, Any]], Answer], memory_bytes: int = 0) -> None:
    """Answers the requests of the parent until it is gone.

    Args:
      answer: a function from a request to the answer.
      memory_bytes: limit of the address space of this process; 0 for no limit.
    """
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into an answer
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        header, payload = answer(json.loads(line))
        output.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n" + payload)
        output.flush()
