"""The exit codes of all commands: the contract between a run and whatever starts it again.

A scheduler decides by the code alone whether to start the same command again. 42 and 127 to 255 mean yes: the rule of
XPK, so that its job sets need no other. A process that a signal ends has 128 plus the number of the signal, which lies
in that range.

Source: https://github.com/AI-Hypercomputer/xpk, the failure policy of its workloads.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple


class ExitCode(NamedTuple):
    """One way in which a command ends."""

    code: int
    name: str
    meaning: str  # one sentence


FINISHED = 0
ERROR = 1
MISTAKE = 2
RETRY = 42
INTERRUPTED = 128 + signal.SIGINT
PREEMPTED = 128 + signal.SIGTERM

CONTRACT = (
    ExitCode(FINISHED, "FINISHED", "The command has done all its work."),
    ExitCode(ERROR, "ERROR", "An unexpected exception, whose traceback is in the output; it would come again."),
    ExitCode(MISTAKE, "MISTAKE", "A mistake that the user has to correct; one sentence in the output names it."),
    ExitCode(
        RETRY,
        "RETRY",
        "Another process was lost or hung, the storage did not answer for minutes, or a device was lost; the same "
        "command continues.",
    ),
    ExitCode(INTERRUPTED, "INTERRUPTED", "Ctrl-C has ended the command; the same command continues."),
    ExitCode(
        PREEMPTED,
        "PREEMPTED",
        "SIGTERM has ended the run, and its state is saved; the same command continues.",
    ),
)

# Statuses and words of errors of JAX's runtime that report the loss of a device or of the connection to one.
_LOST = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED)\b"
    r"|device halted|uncorrectable|device lost|hardware error|NCCL|Gloo|Connection (reset|closed) by peer",
    re.IGNORECASE,
)


def retryable(code: int) -> bool:
    """Whether the same command should be started again after it has ended with `code`."""
    return code == RETRY or 127 <= code <= 255


def of_exception(error: BaseException) -> int:
    """RETRY for an error of JAX's runtime that reports a lost device or connection, ERROR for all other exceptions."""
    of_runtime = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")  # this module never imports jax
    return RETRY if of_runtime and _LOST.search(str(error)) else ERROR
