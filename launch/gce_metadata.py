"""Which process a host of Compute Engine is. JAX reads this from the metadata of the Cloud TPU API, which differs.

The attribute `worker-network-endpoints` is `id:port:address,..` there and bare addresses on Compute Engine, which JAX
cannot split; without these variables every host would see its devices and still wait for the others for ever.
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

PORT = 8482  # of process 0, as on Cloud TPU VMs
MEETING_S = 1800.0  # how long hosts wait for the address of the first slice
POLL_S = 2.0
ADDRESS = "launch/coordinator.txt"  # in the workdir


def variables(slice_index: int, slices: int, workdir: str) -> dict[str, str]:
    """The variables that make this host a process of the run.

    Args:
      slice_index: of this host's slice, from 0 on.
      slices: of the run.
      workdir: where the first host leaves its address for those of other slices.

    Raises:
      UserError: if the metadata server does not say which host this is, or the first slice does not appear.
    """
    worker, addresses = worker_and_addresses()
    first = addresses[0] if slices == 1 else _meet(slice_index, worker, addresses[0], workdir)
    return members(worker, len(addresses), slice_index, slices, first)


def members(worker: int, workers: int, slice_index: int, slices: int, first: str) -> dict[str, str]:
    """The variables of JAX, and for several slices those of libtpu.

    Args:
      worker: number of this host in its slice.
      workers: hosts of one slice.
      slice_index: number of its slice.
      slices: number of slices.
      first: address of the first host of the first slice.
    """
    count = workers * slices
    values = {"JAX_NUM_PROCESSES": str(count)}
    if count > 1:
        values["JAX_COORDINATOR_ADDRESS"] = f"{first}:{PORT}"
        values["JAX_PROCESS_ID"] = str(slice_index * workers + worker)
    if slices > 1:
        values["MEGASCALE_COORDINATOR_ADDRESS"] = first
        values["MEGASCALE_NUM_SLICES"] = str(slices)
        values["MEGASCALE_SLICE_ID"] = str(slice_index)
    return values


def worker_and_addresses() -> tuple[int, list[str]]:
    """The number of this host in its slice, and the addresses of all hosts of the slice in their order."""
    endpoints = _attribute("worker-network-endpoints")
    environment = tpu_environment(_attribute("tpu-env"))
    worker = (
        _attribute("agent-worker-number") or environment.get("TPU_WORKER_ID") or environment.get("WORKER_ID") or "0"
    )
    addresses = [entry.strip().rsplit(":", 1)[-1] for entry in endpoints.split(",") if entry.strip()]
    if not addresses:
        addresses = ["localhost"]
    if not worker.isdecimal() or int(worker) >= len(addresses):
        raise UserError(
            f"the metadata server calls this host worker {worker!r} of {len(addresses)}; delete the group and create "
            "it again"
        )
    return int(worker), addresses


def tpu_environment(text: str) -> Mapping[str, str]:
    """The attribute `tpu-env`, lines as `NAME: 'value'`, as a mapping."""
    return dict(re.findall(r"^\s*(\w+)\s*[:=]\s*'?(.*?)'?\s*$", text, re.MULTILINE))


def _attribute(name: str) -> str:
    """An attribute of this instance; empty if it has none of the name."""
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise UserError(f"the metadata server answered {error.code} for {name}; try again") from None
    except OSError as error:
        raise UserError(f"the metadata server cannot be reached: {error}; run this in the cloud") from None


def _meet(slice_index: int, worker: int, address: str, workdir: str) -> str:
    """The address of the first host of the first slice, which that host leaves in the workdir."""
    path = storage.path(workdir) / ADDRESS
    if slice_index == 0 and worker == 0:
        storage.make_folder(path.parent)
        storage.write_bytes(path, address.encode())
        return address
    deadline = time.monotonic() + MEETING_S
    while time.monotonic() < deadline:
        if storage.exists(path) and (text := storage.read_bytes(path).decode().strip()):
            return text
        time.sleep(POLL_S)
    raise UserError(f"the first slice has not left its address in {path} within {MEETING_S:.0f} s; look at its log")
