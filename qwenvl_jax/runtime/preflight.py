"""The pre-flight: what every process checks about devices, network, folder and clock before a run begins.

Each check has a time limit or is cheap, ends all processes with one sentence, and names the hosts that it concerns. A
device that does not answer in minutes is found here, and not as a run that hangs in its first step.

Legend: D0, D1, D2 are positions on the axes of a mesh, N is `SIZE`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.runtime import disk, distributed, log, storage
from qwenvl_jax.runtime.distributed import listed, named
from qwenvl_jax.runtime.errors import PeerError, StorageError, UserError

SIZE = 128  # of the matrices that every device multiplies
LARGEST_OFFSET = 30.0  # seconds between the clock of a host and that of process 0
_MARK = ".preflight"
_ANSWER = 10.0  # seconds for the answer to a question about the clock


def seconds_per_check() -> float:
    """Seconds for one collective with its compilation: `QWENVL_PREFLIGHT_SECONDS`, default 180."""
    return distributed.whole_seconds("QWENVL_PREFLIGHT_SECONDS", 180, 999999)


def check(mesh: Mesh, folder: epath.PathLike, needed_bytes: int) -> None:
    """Checks devices, collectives, folder and clocks, and prints one line.

    Args:
      mesh: of the run, over the devices of all processes.
      folder: the workdir; it is not created if it is missing.
      needed_bytes: that must be free on its disk.

    Raises:
      UserError: if the folder cannot be used or has no space, a clock is wrong, or hosts have unlike devices.
      PeerError: if a process does not come, or a device does not answer or computes wrongly.
    """
    began = time.monotonic()
    check_devices_alike()
    axes = check_collectives(mesh, seconds_per_check())
    check_folder(folder)
    free = check_space(folder, needed_bytes)
    spread = check_clocks()
    processes = distributed.process_count()
    parts = [f"{processes} process{'es' * (processes > 1)}", f"{mesh.size} device{'s' * (mesh.size > 1)}"]
    parts += [f"sums along {listed(axes)} exact"] if axes else []
    parts += [f"{folder} writable" + ("" if free is None else f" with {log.size(free)} free")]
    parts += [] if spread is None else [f"clocks within {spread:.1f} s"]
    log.line(f"pre-flight passed: {', '.join(parts)} ({time.monotonic() - began:.1f} s)")


def check_devices_alike() -> None:
    """Raises UserError if a process has another number or kind of devices than most others."""
    devices = jax.local_devices()
    kinds = sorted({device.device_kind for device in devices})
    facts = {"the number of its devices": str(len(devices)), "the kind of its devices": ", ".join(kinds)}
    distributed.agree(facts, "a chip may be broken or in use there: exchange the host, or run setup again on it")


def check_collectives(mesh: Mesh, seconds: float) -> list[str]:
    """Has every device multiply a matrix and all of them sum it along every axis, with known numbers, exactly.

    Args:
      mesh: over the devices of all processes.
      seconds: the limit of each of the sums.

    Returns:
      The axes of more than one device.

    Raises:
      PeerError: naming the processes that did not come or finish, or the devices that compute wrongly.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for axis in (None, *axes):
        task = "the product on every device" if axis is None else f"the sum along {axis}"
        distributed.gather_within(None, seconds, task)
        wrong = _within(seconds, functools.partial(_wrong_devices, mesh, axis))
        answers = distributed.gather_within(wrong, seconds + _ANSWER, f"the end of {task}")
        distributed.from_primary(functools.partial(_judge, answers, task, seconds))
    return axes


def _judge(answers: list[list[int] | None], task: str, seconds: float) -> None:
    """Raises PeerError for processes without an answer, or with devices that are wrong."""
    late = [index for index, wrong in enumerate(answers) if wrong is None]
    if late:
        who = "no process" if len(late) == len(answers) > 1 else named(late)
        advice = "a device or the network is at fault: exchange the host, and run the same command again"
        raise PeerError(f"{who} did not finish {task} within {seconds:.0f} s; {advice}")
    for index, wrong in enumerate(answers):
        if wrong:
            devices = ", ".join(map(str, wrong))
            raise PeerError(f"{task} is wrong on device {devices} of {named([index])}; exchange that host")


def _within(seconds: float, function: Callable[[], list[int]]) -> list[int] | None:
    """The result of a function on another thread; None if it takes longer."""
    outcome: queue.SimpleQueue[list[int] | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put(function())
        except BaseException as error:
            outcome.put(error)

    threading.Thread(target=work, name="pre-flight", daemon=True).start()
    try:
        answer = outcome.get(timeout=seconds)
    except queue.Empty:
        return None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _wrong_devices(mesh: Mesh, axis: str | None) -> list[int]:
    """The numbers of this process's devices whose result is not the expected one.

    The numbers are small integers: products of rows of 128 of them, and sums of those over thousands of devices, are
    exact in float32, also if a matrix unit rounds its inputs to bfloat16.
    """
    spec = P(*mesh.axis_names)
    kinds = np.arange(mesh.size).reshape(mesh.devices.shape) % 3  # [D0, D1, D2]: which of three matrices a device gets
    rows = np.arange(SIZE)[:, None]
    matrices = np.stack([(rows * rows.T + rows + kind) % 3 for kind in range(3)]).astype(np.float32)  # [3, N, N]
    products = matrices @ matrices
    shape = (*kinds.shape, SIZE, SIZE)
    sharding = NamedSharding(mesh, spec)

    def matrices_at(index: Any) -> np.ndarray:
        return matrices[kinds[index[: kinds.ndim]]]

    inputs = jax.make_array_from_callback(shape, sharding, matrices_at)

    def compute(local: jax.Array) -> jax.Array:
        product = local @ local
        return product if axis is None else jax.lax.psum(product, axis)

    out = P(*(None if name == axis else name for name in mesh.axis_names))
    results = jax.jit(jax.shard_map(compute, mesh=mesh, in_specs=spec, out_specs=out))(inputs)
    wrong = []
    for shard in results.addressable_shards:
        position = np.argwhere(mesh.devices == shard.device)[0]
        group = [slice(None) if name == axis else at for name, at in zip(mesh.axis_names, position, strict=True)]
        expected = products[kinds[tuple(group)]].reshape(-1, SIZE, SIZE).sum(axis=0)
        if not np.array_equal(np.asarray(shard.data).reshape(SIZE, SIZE), expected):
            wrong.append(shard.device.id)
    return wrong


def check_folder(folder: epath.PathLike) -> None:
    """Has every process write into a folder, and see what process 0 writes there. Leaves nothing.

    Raises:
      UserError: on every process if one cannot write, or has another folder under that name.
    """
    folder = storage.path(folder)
    token = distributed.from_primary(lambda: uuid.uuid4().hex)
    first = folder / f"{_MARK}-{token}"
    mark = folder / f"{_MARK}-{token}-{distributed.process_index()}"
    made: list[epath.Path] = []
    if distributed.is_primary() and not storage.is_remote(folder):
        made = [path for path in (folder, *folder.parents) if not storage.exists(path)]

    def begin() -> None:
        storage.make_folder(folder)
        storage.write_bytes(first, b"")

    def judge() -> None:
        for index, (seen, problem) in enumerate(answers):
            if not seen:
                raise UserError(
                    f"{folder} is another folder on {named([index])} than on process 0; name one that all hosts share, "
                    "such as gs://.. or a network disk"
                )
            if problem:
                raise UserError(f"{named([index])} cannot write to {folder} ({problem}); mend its permissions there")

    try:
        distributed.from_primary(begin)
        answers = distributed.gather(_try_to_write(first, mark))
        distributed.from_primary(judge)
    finally:
        if distributed.is_primary():
            with contextlib.suppress(OSError, StorageError):
                storage.remove(first)
            for path in made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # `epath` would raise a ValueError if somebody has written there meanwhile


def _try_to_write(first: epath.Path, mark: epath.Path) -> tuple[bool, str]:
    """Whether this process sees the first mark, and why it cannot write one of its own; empty if it can."""
    try:
        if not storage.exists(first):
            return False, ""
        storage.write_bytes(mark, b"written")
        whole = storage.read_bytes(mark) == b"written"
        storage.remove(mark)
    except (OSError, StorageError) as error:
        return True, (error.strerror if isinstance(error, OSError) else "") or str(error)
    return True, "" if whole else "what is read there is not what was written"


def check_space(folder: epath.PathLike, needed_bytes: int) -> int | None:
    """The free bytes of the disk of a folder; None on an object store.

    Raises:
      UserError: if there are less than `needed_bytes`.
    """

    def look() -> int | None:
        free = None if storage.is_remote(folder) else disk.free_bytes(storage.absolute(folder))
        if free is not None and free < needed_bytes:
            raise UserError(
                f"the disk of {folder} has {log.size(free)} free, and the next checkpoints need "
                f"{log.size(needed_bytes)}; free some, or name another --workdir"
            )
        return free

    return distributed.from_primary(look)


def check_own_folder(folder: epath.PathLike, needed_bytes: int, *, refuse: bool) -> None:
    """Has every process write into a folder on its own disk, and prints one line. Leaves nothing but the folder.

    Args:
      folder: on the disk of every host, made if it is missing.
      needed_bytes: of this process, that must be free on that disk.
      refuse: whether a host that cannot use it is an error; otherwise the line names it.

    Raises:
      UserError: if the folder is not on a disk; with `refuse` on every process, naming the processes concerned.
    """
    if storage.is_remote(folder):
        raise UserError(
            f"config.checkpoint.local is {folder}; name a folder on a disk that every host has, such as "
            "/dev/shm/checkpoints"
        )
    answers = distributed.gather(_own_problem(storage.absolute(folder), needed_bytes))

    def judge() -> None:
        bad = [index for index, problem in enumerate(answers) if problem]
        if not bad:
            log.line(f"{folder} is writable on every host")
            return
        sentence = f"{named(bad)} cannot use {folder} ({answers[bad[0]]})"
        if refuse:
            raise UserError(
                f"{sentence}; name a folder on a disk that every host has, or leave config.checkpoint.local out"
            )
        log.line(f"warning: {sentence}; mend it for local checkpoints, the run goes on without")

    distributed.from_primary(judge)


def _own_problem(folder: epath.Path, needed_bytes: int) -> str:
    """Why this process cannot write so much into a folder; "" if it can."""
    mark = folder / f"{_MARK}-{uuid.uuid4().hex}"
    try:
        storage.make_folder(folder)
        storage.write_bytes(mark, b"")
        storage.remove(mark)
        free = disk.free_bytes(folder)
    except (OSError, StorageError) as error:
        return (error.strerror if isinstance(error, OSError) else "") or str(error)
    if free < needed_bytes:
        return f"it has {log.size(free)} free, and local checkpoints need {log.size(needed_bytes)} there"
    return ""


def check_clocks() -> float | None:
    """The largest difference of a host's clock from that of process 0, in seconds; None on other processes or alone.

    Raises:
      UserError: on every process if it is larger than `LARGEST_OFFSET`.
    """
    line = distributed.connection()
    offsets = distributed.gather(line.clock_offset(_ANSWER) if line else None)

    def judge() -> float | None:
        known = [abs(offset or 0.0) for offset in offsets]
        wrong = [index for index, offset in enumerate(known) if offset > LARGEST_OFFSET]
        if wrong:
            raise UserError(
                f"the clock of {named(wrong)} differs from that of process 0 by {max(known):.0f} s; have the hosts "
                "take their time from one server (chrony, systemd-timesyncd)"
            )
        return max(known) if len(known) > 1 else None

    return distributed.from_primary(judge)
