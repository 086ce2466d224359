"""Child processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, MappingProxyType
from typing import IO, NamedTuple, TextIO

from qwenvl_jax.runtime import exit_codes

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def end_with_parent(parent: int) -> None:
    """Lets the kernel send SIGTERM to this process if the thread that started it ends.

    If `parent`, the process of that thread, has ended before this call, the kernel sends nothing, and this process ends
    at once.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(exit_codes.PREEMPTED)


class Command(NamedTuple):
    """A program with its arguments, and environment variables that it gets beside those of this process."""

    arguments: Sequence[str]
    variables: Mapping[str, str] = MappingProxyType({})


class Ended(NamedTuple):
    """How a command ended: its exit code, for a signal as a shell reports it, and the seconds that it took."""

    code: int
    seconds: float


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code; see `run_together`."""
    return run_together([Command(arguments)])[0].code


def run_together(commands: Sequence[Command]) -> list[Ended]:
    """Runs commands at the same time and waits for all of them. The main thread calls it.

    The first command writes to where this process writes. What another one writes follows when all have ended, on
    standard error if it failed; it is lost if this process is killed.

    SIGTERM and Ctrl-C are passed on as SIGTERM, on which a run saves its state; this process waits for that. In a
    terminal, Ctrl-C reaches the commands as SIGINT as well. If this process is killed, the commands get SIGTERM.

    Returns:
      How each of them ended, in their order. One that had finished counts as PREEMPTED if a signal came while any was
      running, so that the caller does not begin the next one.
    """
    received = False
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal received
        del number, frame
        received = True
        _end(processes)

    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:]]
        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            began = time.monotonic()
            for command, output in zip(commands, [None, *outputs], strict=True):
                if not received:
                    processes.append(_start(command, output))
                if received:
                    _end(processes[-1:])  # the signal came before there was this process
            with ThreadPoolExecutor(len(commands)) as waiting:
                ended = list(waiting.map(lambda process: _wait(process, began), processes))
        except BaseException:
            _end(processes)
            for process in processes:
                process.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for end, output in zip(ended[1:], outputs, strict=False):
            _show(output, sys.stderr if end.code else sys.stdout)
    if received:
        ended = [end._replace(code=end.code or exit_codes.PREEMPTED) for end in ended]
        ended += [Ended(exit_codes.PREEMPTED, 0.0)] * (len(commands) - len(ended))
    return ended


def _show(output: IO[bytes], stream: TextIO) -> None:
    """Copies what a command wrote, byte for byte. If the stream takes no more, the command has ended as it has."""
    output.seek(0)
    with contextlib.suppress(OSError):
        stream.flush()
        shutil.copyfileobj(output, stream.buffer)
        stream.flush()


def _start(command: Command, output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A process that ends with this one and writes to `output`, by default to where this one writes."""
    return subprocess.Popen(
        command.arguments,
        env={**os.environ, **command.variables},
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        preexec_fn=functools.partial(_begin, os.getpid()),
    )


def _begin(parent: int) -> None:
    # This process's handlers would take the signal of a parent that is killed now, and end with the program's start.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], began: float) -> Ended:
    code = process.wait()
    return Ended(code if code >= 0 else 128 - code, time.monotonic() - began)
