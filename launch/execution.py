"""Runs commands, one after another: says what each does, waits for states, and undoes what it made if one fails.

Deletions go on after one that fails, because what is left costs money: a slice that is gone keeps no other one.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, NoReturn

from launch.cloud_errors import CloudError, explain
from launch.command import Command
from launch.job import Job
from qwenvl_jax.runtime.errors import UserError

WAIT_HOURS = 24.0  # for which a state is waited
_FIRST_POLL, _LONGEST_POLL = 2.0, 30.0  # seconds between two looks at a state
_INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "`gcloud components install kubectl gke-gcloud-auth-plugin`",
    "xpk": "`pip install xpk`",
}


class StillWaitingError(CloudError):
    """A state that has not come in time; what waits for it exists."""


class _SignalledError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which only this process gets."""


def run(
    commands: Sequence[Command],
    wait_hours: float = WAIT_HOURS,
    *,
    keep_waiting: bool = True,
    outputs: list[str] | None = None,
) -> None:
    """Runs commands until one fails. Then the resources that earlier ones have made are deleted again.

    Deletions all run. One of what is gone already counts as done, unless nothing was there at all.

    Ctrl-C, SIGTERM and the end of the terminal delete nothing: they say what exists and how to delete it.

    Args:
      commands: in order.
      wait_hours: for how long a state is waited, per command.
      keep_waiting: whether what has been made stays, and waits on, if `wait_hours` have passed.
      outputs: gets what the commands print to stdout, which is printed when each has ended.

    Raises:
      UserError: if a program is missing (before any command), fails, or reports a state that ends the waiting.
    """
    _check_programs(commands)
    made: list[Command] = []
    failed: list[CloudError] = []
    with _signals_as_interrupts():
        for command in commands:
            _one(command, wait_hours, keep_waiting, outputs, made, failed)
    deletions = sum(bool(command.deletes) for command in commands)
    if len(failed) == deletions or not all(error.absent for error in failed):
        for error in sorted(failed, key=lambda error: error.absent):
            raise error


def _one(
    command: Command,
    wait_hours: float,
    keep_waiting: bool,
    outputs: list[str] | None,
    made: list[Command],
    failed: list[CloudError],
) -> None:
    """Runs one of the commands of `run`; adds it to `made` if it has created something, its error if it deletes."""
    print(f"# {command.why}\n{command.shell}", flush=True)
    try:
        output = _run(command, wait_hours, captured=outputs is not None)
    except KeyboardInterrupt:
        _say_what_exists([*made, command])
        raise
    except StillWaitingError:
        if keep_waiting:
            _say_what_exists(made)
        else:
            _undo(made)
        raise
    except CloudError as error:
        if outputs is not None:
            print(error.output, flush=True)
            outputs.append(error.output)
        if command.deletes:
            failed.append(error)
            return
        if command.creates and not error.refused:
            _say_what_exists([command])
        _undo(made)
        raise
    if outputs is not None:
        print(output, flush=True)
        outputs.append(output)
    if command.creates:
        made.append(command)


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end the commands as Ctrl-C does, and then this process as they would have."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        raise _SignalledError

    if threading.current_thread() is not threading.main_thread():
        yield  # where Python takes no signals
        return
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
        for number in received[:1]:
            os.kill(os.getpid(), number)


def runnable(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments with this Python for `python`, which need not be on PATH."""
    program, *others = arguments
    return (sys.executable if program == "python" else program, *others)


def become(command: Command) -> NoReturn:
    """Replaces this process by a command."""
    _check_programs([command])
    print(f"# {command.why}\n{command.shell}", flush=True)
    arguments = runnable(command.arguments)
    os.execvpe(arguments[0], list(arguments), {**os.environ, **command.environment})


def run_in_zones(build: Callable[[Job], Sequence[Command]], job: Job, wait_hours: float = WAIT_HOURS) -> None:
    """Runs the commands of a builder in the first zone that has room; another reason than room ends the attempt.

    Raises:
      UserError: if no zone grants the request; it has the reason of every zone.
    """
    reasons = []
    for zone in job.zones or ("",):
        in_zone = job.in_zone(zone) if zone else job
        try:
            run(build(in_zone), wait_hours, keep_waiting=len(job.zones) <= 1)
        except CloudError as error:
            if not error.elsewhere or len(job.zones) == 1:
                raise
            print(f"{zone}: {error}", file=sys.stderr)
            reasons.append(f"{zone}: {error}")
            continue
        if len(job.zones) > 1:
            print(f"the chips are in {zone}; give --zone={zone} to the next commands", flush=True)
        return
    raise CloudError(f"none of {len(job.zones)} zones grants {job.topology.name}: {'. '.join(reasons)}", refused=True)


def _run(command: Command, wait_hours: float, captured: bool) -> str:
    if not command.until:
        return _once(command, captured)
    deadline = time.monotonic() + wait_hours * 3600
    seconds = _FIRST_POLL
    last = ""
    while (state := _once(command, captured=True)) not in command.until:
        if state in command.unless:
            raise CloudError(f"{command.arguments[0]} reports {state}; {command.advice}", elsewhere=True)
        if time.monotonic() > deadline:
            raise StillWaitingError(
                f"the state is still {state or 'unknown'} after {wait_hours:g} hours; look again with `status`, or "
                "delete the resource",
                elsewhere=True,
            )
        if state != last:
            print(f"{time.strftime('%H:%M:%S')} {state or 'no state yet'}", flush=True)
            seconds = _FIRST_POLL
        last = state
        time.sleep(min(seconds, max(0.0, deadline - time.monotonic())))
        seconds = min(1.5 * seconds, _LONGEST_POLL)
    return state


def _once(command: Command, captured: bool) -> str:
    """Runs a command once; its output without white space at the ends if it is captured."""
    environment = {**os.environ, **command.environment}
    content = command.stdin.encode() or None
    if command.input_from:
        source = subprocess.run(command.input_from, env=environment, capture_output=True, check=False)
        if source.returncode:
            raise explain(command.input_from[0], source.returncode, source.stderr.decode(errors="replace"))
        content = source.stdout  # bytes, as a secret may be any
        if not content.strip():
            raise CloudError(
                f"`{shlex.join(command.input_from)}` lists nothing, so nothing was done; check it with `status`",
                refused=True,
            )
    process = subprocess.Popen(
        runnable(command.arguments),
        env=environment,
        stdin=subprocess.DEVNULL if content is None else subprocess.PIPE,
        stdout=subprocess.PIPE if captured else None,
        stderr=subprocess.PIPE,
    )
    tail: collections.deque[str] = collections.deque(maxlen=100)
    assert process.stderr is not None
    echo = threading.Thread(target=_echo, args=(process.stderr, tail), daemon=True)
    echo.start()
    try:
        if content is not None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # its message says why it did not read
                pipe.write(content)
        output = process.stdout.read().decode(errors="replace") if process.stdout else ""
        code = process.wait()
    except _SignalledError:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    except KeyboardInterrupt:
        process.wait()  # the terminal has sent Ctrl-C to it as well
        raise
    echo.join(timeout=5)
    if code not in command.accepts:
        error = explain(command.arguments[0], code, "".join(tail))
        error.output = output.strip()
        raise error
    return output.strip()


def _echo(lines: IO[bytes], tail: collections.deque[str]) -> None:
    for content in lines:
        line = content.decode(errors="replace")
        tail.append(line)
        print(line, end="", file=sys.stderr, flush=True)


def _check_programs(commands: Sequence[Command]) -> None:
    for program in {name for command in commands for name in (command.arguments[0], *command.input_from[:1])}:
        if not shutil.which(runnable((program,))[0]):
            how = _INSTALL.get(program, "its maker's page")
            raise UserError(
                f"the program {program!r} is not installed ({how}); install it, or run the printed commands"
            )


def _undo(made: Sequence[Command]) -> None:
    """Deletes what this call has made, the last first."""
    for index, command in reversed(list(enumerate(made))):
        if not command.undo:
            continue
        print(f"# Delete {command.creates} again, which this call has made.\n{shlex.join(command.undo)}", flush=True)
        try:
            code = subprocess.run(command.undo, stdin=subprocess.DEVNULL, check=False).returncode
        except KeyboardInterrupt:
            _say_what_exists(made[: index + 1])
            raise
        if code:
            print(f"{command.creates} could not be deleted; run the line above yourself", file=sys.stderr)


def _say_what_exists(commands: Sequence[Command]) -> None:
    for command in commands:
        if command.creates:
            print(f"{command.creates} may exist; to delete it: {shlex.join(command.undo)}", file=sys.stderr)
