"""Child processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

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


def run(command: Sequence[str]) -> int:
    """Runs a command and returns its exit code, for a signal as a shell reports it. The main thread calls it.

    SIGTERM and Ctrl-C are passed on as SIGTERM, on which a run saves its state; this process waits for that. In a
    terminal, Ctrl-C reaches the command as SIGINT as well. If this process is killed, the command gets SIGTERM.
    """
    received = False
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal received
        del number, frame
        received = True
        if process is not None:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if received:
            return exit_codes.PREEMPTED
        process = subprocess.Popen(command, preexec_fn=functools.partial(end_with_parent, os.getpid()))
        if received:
            process.send_signal(signal.SIGTERM)  # it came before there was a process
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and code == exit_codes.FINISHED:
        return exit_codes.PREEMPTED  # the command had just finished; the caller must not begin the next one
    return code if code >= 0 else 128 - code
