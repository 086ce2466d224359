"""Joins the processes of a run, lets them exchange values, and ends them together."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from etils import epath
from jax._src import distributed as _jax_distributed

from qwenvl_jax.runtime import errors, exit_codes, rollcall, storage
from qwenvl_jax.runtime.clusters import TPUS, find_membership, one_of_several
from qwenvl_jax.runtime.errors import PeerError, UserError

_POLL = 2.0  # seconds of one wait for another process; then it is asked again
_line: rollcall.Line | None = None  # to process 0, if there are several processes
_calls = itertools.count()  # exchanges so far: all processes make the same ones in the same order


def initialize() -> None:
    """Joins the other processes of the run if there are any; call it before anything touches a device.

    `clusters.find_membership` says who they are, `rollcall.call` waits until all are there: at most `join_seconds()`.

    Raises:
      UserError: if this process cannot tell whether it is alone.
      PeerError: if the others do not come.
    """
    global _line
    if _line is not None:
        return
    seconds = join_seconds()
    membership = find_membership(os.environ, seconds)
    if membership is None:
        return
    _line = rollcall.call(membership, seconds)
    jax.distributed.initialize(
        membership.address,
        membership.count,
        membership.index,
        local_device_ids=membership.devices,
        cluster_detection_method="deactivate",  # it has been asked
        initialization_timeout=int(seconds) + 1,
    )


def join_seconds() -> float:
    """Seconds for which processes wait for one another at the start: `QWENVL_JOIN_SECONDS`, default 60."""
    text = os.environ.get("QWENVL_JOIN_SECONDS", "60")
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise UserError(f"QWENVL_JOIN_SECONDS is {text[:80]!r}; give whole seconds from 1 to 999999")
    return float(text)


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
    if _line is None:
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
            sentence = text.getvalue().strip().removeprefix("error: ")
        except BaseException:
            if cause := _line.cause():
                text.write(f"error: {cause[0]}\n")
                code = cause[1]
            else:
                traceback.print_exc(file=text)
            sentence = f"{type(error).__name__}: {str(error).strip() or 'no message'}; its output has more"
        print(text.getvalue(), end="", file=sys.stderr, flush=True)
        sys.stdout.flush()
        _line.fail(" ".join(sentence.split()), code)
        os._exit(code)
    _line.done()


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
        answer = _wait_for(client, key)
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
    values = [value, *(json.loads(_wait_for(client, f"{key}/{index}")) for index in range(1, process_count()))]
    client.key_value_delete(key)  # with all keys below it
    return values


def agree(facts: Mapping[str, str]) -> None:
    """Compares the facts of all processes; all of them must call it, in the same order.

    Raises:
      UserError: on every process, naming the first one that differs from process 0, the fact and both values.
    """
    if process_count() == 1:
        return
    client = _client()
    key = f"qwenvl/{next(_calls)}/facts"
    client.key_value_set(f"{key}/{process_index()}", json.dumps(dict(facts)))

    def compare() -> None:
        for index in range(process_count()):
            theirs = json.loads(_wait_for(client, f"{key}/{index}"))
            for name in [*facts, *(name for name in theirs if name not in facts)]:
                if theirs.get(name) != facts.get(name):
                    raise UserError(
                        f"process {index} differs from process 0 in {name}: {theirs.get(name, 'nothing')} there, "
                        f"{facts.get(name, 'nothing')} here; start all processes from the same code, config and data"
                    )

    from_primary(compare)


def check_shared(folder: epath.PathLike) -> None:
    """Checks that a path is the same folder on all processes.

    Raises:
      UserError: on every process if one of them does not see what process 0 puts there.
    """
    if process_count() == 1 or storage.is_remote(folder):
        return
    folder = storage.path(folder)
    mark = folder / f".joining-{from_primary(lambda: uuid.uuid4().hex)}"
    made = [path for path in (folder, *folder.parents) if is_primary() and not path.exists()]

    def leave() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("")

    def judge() -> None:
        for index, (host, seen) in enumerate(answers):
            if not seen:
                raise UserError(
                    f"{folder} is another folder on process {index} (host {host}) than on process 0; name one that all "
                    "hosts share, such as gs://.. or a network disk"
                )

    try:
        from_primary(leave)
        answers = gather([socket.gethostname(), mark.exists()])
        from_primary(judge)
        made = []
    finally:
        if is_primary():
            mark.unlink(missing_ok=True)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


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


def _wait_for(client: Any, key: str) -> str:
    """The value that another process sets, however long it takes."""
    while True:
        try:
            return client.blocking_key_value_get(key, int(1000 * _POLL))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


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
