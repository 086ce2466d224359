"""Waits until moments of the wall clock, as XLA and TensorStore do, under `benchmarks/wall_clock.c`.

    python -m tests.support.wall_clock_waits KIND SECONDS

Waits until so many seconds from now, but not before 1970, and prints for how many monotonic seconds it waited, and in
how many calls. A wake-up before is waited through, as every caller does. KIND is "condition" (pthread_cond_timedwait),
"semaphore" or "futex" (the system call).
"""

from __future__ import annotations

import ctypes
import errno
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_FUTEX = 202  # x86-64
FUTEX_WAIT_BITSET = 9
FUTEX_CLOCK_REALTIME = 256


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wait(kind: str, until: Timespec) -> int:
    """One call; its error, 0 for a wake-up."""
    room = ctypes.create_string_buffer(128)  # zeros are a mutex that is free, a condition and an empty semaphore
    moment = ctypes.byref(until)
    if kind == "condition":
        mutex = ctypes.create_string_buffer(128)
        LIBC.pthread_mutex_lock(mutex)
        return int(LIBC.pthread_cond_timedwait(room, mutex, moment))
    if kind == "semaphore":
        code = LIBC.sem_timedwait(room, moment)
    else:
        command = ctypes.c_long(FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME)
        arguments = (room, command, ctypes.c_long(0), moment, None, ctypes.c_long(-1))
        code = LIBC.syscall(ctypes.c_long(SYS_FUTEX), *arguments)
    return ctypes.get_errno() if code else 0


def main() -> None:
    kind, seconds = sys.argv[1], float(sys.argv[2])
    moment = max(0.0, time.time() + seconds)
    until = Timespec(int(moment), int(moment % 1 * 1e9))
    print("waits", flush=True)
    began = time.monotonic()
    calls = 0
    while True:
        calls += 1
        error = wait(kind, until)
        if error == errno.ETIMEDOUT:
            break
        if error not in (0, errno.EINTR):
            raise OSError(error, "the wait failed")
    print(time.monotonic() - began, calls, flush=True)


if __name__ == "__main__":
    main()
