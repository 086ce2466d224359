"""Joins the processes of a run, lets them exchange values, and ends them together."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed as _jax_distributed

from qwenvl_jax.runtime import errors, exit_codes, rendezvous
from qwenvl_jax.runtime.clusters import TPUS, find_membership, one_of_several
from qwenvl_jax.runtime.connection import Connection
from qwenvl_jax.runtime.errors import PeerError, UserError
from qwenvl_jax.runtime.preemption import set_sigterm_aside

_SHOWN = 8  # the most processes that a message names
_POLL = 2.0  # seconds of one wait for another process; then it is asked again
# Seconds without a heartbeat after which JAX aborts all processes. It takes them from the wall clock, which may be set
# forward while the run goes on, so there are 10 days of them: `connection` and `coordinator` notice who is lost.
JAX_HEARTBEAT_TIMEOUT = 864_000
_connection: Connection | None = None  # to process 0, if there are several processes
_calls = itertools.count()  # exchanges so far: all processes make the same ones in the same order


def initialize() -> None:
    """Joins the other processes of the run if there are any; call it before anything touches a device.

    `clusters.find_membership` says who they are, `rendezvous.join` waits until all are there: at most `join_seconds()`.

    Raises:
      UserError: if this process cannot tell whether it is alone.
      PeerError: if the others do not come.
    """
    global _connection
    if _connection is not None:
        return
    seconds = join_seconds()
    silence = silence_seconds()
    membership = find_membership(os.environ, seconds)
    if membership is None:
        return
    _connection = rendezvous.join(membership, seconds, silence)
    jax.distributed.initialize(
        membership.address,
        membership.count,
        membership.index,
        local_device_ids=membership.devices,
        cluster_detection_method="deactivate",  # it has been asked
        initialization_timeout=int(seconds) + 1,
        heartbeat_timeout_seconds=JAX_HEARTBEAT_TIMEOUT,
    )
    set_sigterm_aside()


def join_seconds() -> float:
    """Seconds for which processes wait for one another at the start: `QWENVL_JOIN_SECONDS`, default 60."""
    return whole_seconds("QWENVL_JOIN_SECONDS", 60, 999999)


def silence_seconds() -> float:
    """Seconds after which a process that sends no heartbeats counts as lost: `QWENVL_SILENCE_SECONDS`, default 60."""
    return whole_seconds("QWENVL_SILENCE_SECONDS", 60, 999999)


def whole_seconds(variable: str, default: int, most: int) -> float:
    """The value of an environment variable in seconds. Raises UserError if it is no whole number from 1 to `most`."""
    text = os.environ.get(variable, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= most:
        raise UserError(f"{variable} is {text[:80]!r}; give whole seconds from 1 to {most}")
    return float(text)


def connection() -> Connection | None:
    """The line to process 0; None if this process is alone."""
    return _connection


def require_alone(tool: str) -> None:
    """Refuses to run a tool of one process as one of several, where it would wait for the others or write over them.

    Raises:
      UserError: if a launcher or a TPU slice has several processes and this is one of them.
    """
    said_by = one_of_several(os.environ)
    if not said_by:
        return
    advice = "without this slice's TPU (JAX_PLATFORMS=cpu)" if said_by in TPUS else "set JAX_NUM_PROCESSES=1"
    raise UserError(
        f"{tool} works as one process, but this is one of several ({said_by}); start it once, on a machine of its own, "
        f"without a launcher, or {advice}"
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes of the run, within seconds and with one sentence, if the block fails on one of them.

    The process that fails ends here: to unwind further could mean to wait for the others, which have ended by then.
    """
    if _connection is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        text = io.StringIO()
        code = exit_codes.of_exception(error)
        try:
            with contextlib.redirect_stderr(text), errors.exit_on_user_error():
                raise
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else exit_codes.ERROR
            said = text.getvalue().strip().removeprefix("error: ")
            sentence = said or " ".join(getattr(error, "__notes__", ())) or f"it ended with exit code {code}"
        except BaseException:
            if cause := _connection.cause():
                text.write(f"error: {cause[0]}\n")
                code = cause[1]
            else:
                traceback.print_exc(file=text)
            sentence = f"{type(error).__name__}: {str(error).strip() or 'no message'}; its output has more"
        print(text.getvalue(), end="", file=sys.stderr, flush=True)
        sys.stdout.flush()
        _connection.fail(" ".join(sentence.split()), code)
        os._exit(code)
    _connection.done()


def process_index() -> int:
    """The number of this process, known before any device is touched."""
    return _jax_distributed.global_state.process_id


def process_count() -> int:
    """How many processes have joined, known before any device is touched."""
    return _jax_distributed.global_state.num_processes


def is_primary() -> bool:
    """Whether this process writes logs, tables and JSON files."""
    return process_index() == 0


def from_primary(function: Callable[[], Any]) -> Any:
    """The result of `function` on process 0, for all processes: only process 0 asks the file system.

    All processes must call it, in the same order. Nothing runs on a device.

    Args:
      function: takes nothing and returns a JSON value; called on process 0 alone.

    Raises:
      UserError, StorageError: what `function` raises on process 0, on every process. Any other exception is a
        `PeerError` on the others.
    """
    client = _client()
    if client is None:
        return json.loads(json.dumps(function()))
    key = f"qwenvl/{next(_calls)}/primary"
    if is_primary():
        try:
            answer = json.dumps({"value": function()})
        except BaseException as error:
            client.key_value_set(key, json.dumps(_described(error)))
            raise
        client.key_value_set(key, answer)
    else:
        answer = _wait_for(client, key) or ""
    outcome = json.loads(answer)
    return outcome["value"] if "value" in outcome else _raise(**outcome)


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, by their numbers, on process 0; on another process its value alone.

    All processes must call it, in the same order. Values of any length travel over the network of the hosts: nothing is
    compiled, and the devices are neither interrupted nor used.
    """
    client = _client()
    if client is None:
        return [value]
    key = f"qwenvl/{next(_calls)}/gather"
    if not is_primary():
        client.key_value_set(f"{key}/{process_index()}", json.dumps(value))
        return [value]
    texts = [_wait_for(client, f"{key}/{index}") or "null" for index in range(1, process_count())]
    values = [value, *map(json.loads, texts)]
    client.key_value_delete(key)  # with all keys below it
    return values


def gather_within(value: Any, seconds: float, task: str) -> list[Any]:
    """As `gather`, but a process that does not come ends all of them.

    Args:
      value: of this process.
      seconds: how long process 0 waits for the others, from when it comes itself.
      task: what the processes come to, for the message.

    Raises:
      PeerError: on every process, naming those that did not come.
    """
    client = _client()
    if client is None:
        return [value]
    key = f"qwenvl/{next(_calls)}/within"
    if not is_primary():
        client.key_value_set(f"{key}/{process_index()}", json.dumps(value))
    values = [value]

    def collect() -> None:
        deadline = time.monotonic() + seconds
        texts = {index: _wait_for(client, f"{key}/{index}", deadline) for index in range(1, process_count())}
        missing = [index for index, text in texts.items() if text is None]
        if missing:
            come = f"did not come to {task} within {seconds:.0f} s"
            raise PeerError(f"{named(missing)} {come}; look at the output there, and run the same command again")
        values.extend(json.loads(text) for text in texts.values() if text is not None)
        client.key_value_delete(key)

    from_primary(collect)
    return values


def named(indices: Sequence[int]) -> str:
    """Processes for a message, with their hosts if this is process 0: `processes 3 and 5 (hosts a and b)`."""
    hosts = [_connection.host(index) for index in indices] if _connection else []
    known = [host for host in hosts if host]
    several = len(indices) > 1
    name = f"{'processes' if several else 'process'} {listed(indices)}"
    return f"{name} ({'hosts' if several else 'host'} {listed(known)})" if known else name


def listed(items: Sequence[Any]) -> str:
    """`a, b and c`, cut off after some."""
    texts = [str(item) for item in items]
    if len(texts) > _SHOWN:
        return f"{', '.join(texts[:_SHOWN])} and {len(texts) - _SHOWN} more"
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def announce(name: str, text: str) -> None:
    """Makes a text known to the other processes, which look for it with `announced` when they like."""
    client = _client()
    if client is not None:
        client.key_value_set(f"qwenvl/announced/{name}", text)


def announced(name: str) -> str | None:
    """A text that another process has announced, or None if there is none yet; one short request to process 0."""
    client = _client()
    if client is None:
        return None
    try:
        return client.key_value_try_get(f"qwenvl/announced/{name}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def agree(facts: Mapping[str, str], advice: str = "start all processes from the same code, config and data") -> None:
    """Compares the facts of all processes; all of them must call it, in the same order.

    Args:
      facts: values by the name that messages give them.
      advice: what to do about a difference.

    Raises:
      UserError: on every process, naming the first fact that differs, the processes that differ from most others, and
        both values. If no value has a majority, that of process 0 counts.
    """
    if process_count() == 1:
        return
    client = _client()
    key = f"qwenvl/{next(_calls)}/facts"
    client.key_value_set(f"{key}/{process_index()}", json.dumps(dict(facts)))

    def compare() -> None:
        answers = [json.loads(_wait_for(client, f"{key}/{index}") or "{}") for index in range(process_count())]
        for name in dict.fromkeys(name for answer in answers for name in answer):
            values = [answer.get(name, "nothing") for answer in answers]
            usual, count = collections.Counter(values).most_common(1)[0]
            usual = usual if 2 * count > len(values) else values[0]
            odd = [index for index, value in enumerate(values) if value != usual]
            if odd:
                theirs = " or ".join(dict.fromkeys(values[index] for index in odd))
                others = "process 0" if len(values) == 2 else "the others"
                verb = "differ" if len(odd) > 1 else "differs"
                raise UserError(f"{named(odd)} {verb} from {others} in {name}: {theirs} instead of {usual}; {advice}")

    from_primary(compare)


def check_devices() -> None:
    """Touches the devices, and refuses to go on if they belong to other processes than those that have joined.

    Raises:
      UserError: if the devices know of processes that this one has not joined, or of no other process.
    """
    if jax.process_count() != process_count():
        joined = (
            f"{process_count()} processes have joined" if process_count() > 1 else "this process has joined no other"
        )
        raise UserError(
            f"the devices belong to {jax.process_count()} process(es), but {joined}; start it on every host of "
            "the slice, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        )


def _client() -> Any:
    """The connection to the other processes, or None of a single one. JAX keeps it where Orbax takes it from too."""
    return _jax_distributed.global_state.client if process_count() > 1 else None


def _wait_for(client: Any, key: str, deadline: float | None = None) -> str | None:
    """The value that another process sets, however long it takes; None if it is not there at the deadline."""
    while True:
        left = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
        try:
            return client.blocking_key_value_get(key, max(1, int(1000 * left)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            if deadline is not None and time.monotonic() >= deadline:
                return None


def _described(error: BaseException) -> dict[str, Any]:
    code = error.code if isinstance(error, PeerError) else exit_codes.of_exception(error)
    return {"kind": type(error).__name__, "message": str(error), "code": code}


def _raise(kind: str, message: str, code: int) -> NoReturn:
    """Raises the error of process 0 as its own type if it is one of ours."""
    known = getattr(errors, kind, None)
    if known is PeerError:
        raise PeerError(message, code)
    if isinstance(known, type) and issubclass(known, Exception):
        raise known(message)
    raise PeerError(f"process 0 ended with {kind}: {message}; see its output", code)
