"""How a process learns that it is one of several: from variables that the user sets, or from its cluster.

JAX knows the clusters: Cloud TPU (GKE's variables, the metadata server), Slurm, Open MPI, Kubernetes. They are asked
one by one, as `jax.distributed.initialize` would, so that what is wrong can be said before JAX waits for anybody.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax._src import clusters as _jax_clusters

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.membership import Membership, split_address

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DEVICES = "JAX_LOCAL_DEVICE_IDS"
TORCH_PORT = 29500  # torchrun's own default
_TORCH = ("MASTER_ADDR", "WORLD_SIZE", "RANK")

# The names of clusters in JAX, and their common names.
_NAMES = {"ompi": "Open MPI", "slurm": "Slurm", "mpi4py": "MPI", "gketpu": "GKE", "gcetpu": "the TPU's metadata server"}

TPUS = (_NAMES["gketpu"], _NAMES["gcetpu"])

# Counts that launchers leave in the environment, and how their processes are started.
_ANNOUNCED = {
    "SLURM_NTASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI 5 needs the package mpi4py)",
    "PMI_SIZE": "mpiexec (which needs the package mpi4py)",
    "WORLD_SIZE": "torchrun, which sets RANK and MASTER_ADDR too",
    "MEGASCALE_NUM_SLICES": "on TPU hosts with the packages of requirements-tpu.txt",
    "TPU_PROCESS_ADDRESSES": "on TPU hosts with the packages of requirements-tpu.txt",
    "TPU_WORKER_HOSTNAMES": "on TPU hosts with the packages of requirements-tpu.txt",
}
_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_ALONE = f"set {COUNT}=1 to run one process alone"


class _Cluster(NamedTuple):
    """The cluster that this process runs on. Fields are functions, because asking takes requests and time."""

    name: str
    count: Any
    index: Any
    address: Any  # (seconds)
    devices: Any


def find_membership(variables: Mapping[str, str], seconds: float) -> Membership | None:
    """Which of the processes of a run this one is; None if it is alone.

    Args:
      variables: the environment. `JAX_NUM_PROCESSES=1` means alone, whatever else is set.
      seconds: how long to wait for the name of process 0's host.

    Raises:
      UserError: if variables are malformed, contradict one another or are incomplete; if the count of a launcher is
        set that did not start this process; if the cluster cannot be asked.
    """
    variables = _that_say_something(variables)
    given = {name: variables[name] for name in (ADDRESS, COUNT, INDEX) if name in variables}
    count = _number(given, COUNT, 1)
    index = _number(given, INDEX, 0)
    _check_devices(variables)
    if count is not None and index is not None and index >= count:
        raise UserError(
            f"{INDEX} is {index}, but {COUNT} {count} leaves 0 to {count - 1}; give every process a different number"
        )
    if count == 1:
        return None
    cluster = None if len(given) == 3 else _find_cluster(variables)
    if cluster is None:
        missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
        if given and missing:
            raise UserError(
                f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} set, but not {' and '.join(missing)}; "
                f"set all three on every process, or none"
            )
        if not given:
            _check_nothing_announced(variables)
            return None
        assert count is not None and index is not None
        membership = Membership(given[ADDRESS], count, index, "the JAX_ variables")
    else:
        answer = _membership_in(cluster, given, count, index, seconds)
        if answer is None:
            return None
        membership = answer
    try:
        split_address(membership.address)
    except ValueError:
        raise UserError(
            f"{membership.address!r}, from {ADDRESS if cluster is None else membership.said_by}, is not an address "
            "such as 10.0.0.2:8476; give the host of process 0 and a free port on it"
        ) from None
    return dataclasses.replace(membership, devices=None) if DEVICES in variables else membership


def _membership_in(
    cluster: _Cluster, given: Mapping[str, str], count: int | None, index: int | None, seconds: float
) -> Membership | None:
    """What a cluster says of this process, with the variables that the user set; None if the process is alone."""
    name = cluster.name if not given else f"{cluster.name} and {', '.join(given)}"
    try:
        count = int(cluster.count()) if count is None else count
        if count == 1:
            if cluster.name == _NAMES["mpi4py"]:
                raise RuntimeError("mpi4py, of another MPI than the launcher's, sees this process alone")
            return None
        index = int(cluster.index()) if index is None else index
        address = given.get(ADDRESS) or cluster.address(seconds)
        devices = cluster.devices()
    except Exception as error:  # whatever its library raises: requests, sockets, missing variables
        raise UserError(
            f"this looks like a process of {cluster.name}, but that cannot be asked for the others "
            f"({_first_line(error)}); set {ADDRESS}, {COUNT} and {INDEX}, or {_ALONE}"
        ) from None
    if not 0 <= index < count:
        raise UserError(
            f"{name} says that this is process {index} of {count}, which are numbered from 0; check the variables "
            f"of the launcher, or set {ADDRESS}, {COUNT} and {INDEX}"
        )
    return Membership(address, count, index, name, devices)


def one_of_several(variables: Mapping[str, str]) -> str | None:
    """The launcher that has started this process as one of several, for a tool that runs alone; None if there is none.

    Counts without a launcher do not matter to such a tool, nor does a TPU slice whose TPU it does not use.
    """
    variables = _that_say_something(variables)
    if variables.get(COUNT) == "1":
        return None
    if all(name in variables for name in (ADDRESS, COUNT, INDEX)):
        return "the JAX_ variables"
    try:
        cluster = _find_cluster(variables)
        several = cluster is not None and int(cluster.count()) > 1
    except Exception:  # a launcher that cannot be asked has not started several
        return None
    if cluster is None or not several:
        return None
    unused = cluster.name in TPUS and "tpu" not in variables.get("JAX_PLATFORMS", "tpu")
    return None if unused else cluster.name


def _find_cluster(variables: Mapping[str, str]) -> _Cluster | None:
    """The innermost launcher or the cluster that has started this process among others."""
    if "TORCHELASTIC_RUN_ID" in variables and all(name in variables for name in _TORCH):
        return _torchrun(variables)  # even where Slurm has started torchrun
    for cluster in _jax_clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or (
            cluster is _jax_clusters.K8sCluster and "JOB_COMPLETION_INDEX" not in variables
        ):
            continue  # a pod without that number is a single process; asking would fail
        name = _NAMES.get(cluster.name, "Kubernetes")
        try:
            with warnings.catch_warnings(action="ignore"):  # of a missing package; see below
                present = cluster.is_env_present()
            if present:
                return _asked(name, cluster)
        except Exception as error:
            raise UserError(
                f"whether this process is one of several cannot be found out: {name} does not answer "
                f"({_first_line(error)}); set {ADDRESS}, {COUNT} and {INDEX}, or {_ALONE}"
            ) from None
    if all(name in variables for name in _TORCH):
        return _torchrun(variables)
    launched = {"OMPI_COMM_WORLD_SIZE": "PMIX_RANK", "PMI_SIZE": "PMI_RANK"}
    by_mpi = any(count in variables and rank in variables for count, rank in launched.items())
    mpi = _jax_clusters.Mpi4pyCluster
    return _asked(_NAMES["mpi4py"], mpi) if by_mpi and mpi.is_env_present() else None


def _asked(name: str, cluster: Any) -> _Cluster:
    """A cluster that JAX knows."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    def address(seconds: float) -> str:
        return cluster.get_coordinator_address(
            timeout_secs=int(seconds), override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )

    def devices() -> list[int] | None:
        local_index = None if running_in_cloud_tpu_vm else cluster.get_local_process_id()
        return None if local_index is None else [local_index]

    return _Cluster(name, cluster.get_process_count, cluster.get_process_id, address, devices)


def _torchrun(variables: Mapping[str, str]) -> _Cluster:
    """What torchrun, or anything that sets its variables, has started."""

    def address(seconds: float) -> str:
        del seconds
        # torchrun keeps a store on MASTER_PORT while the run lasts.
        port = int(variables.get("MASTER_PORT", TORCH_PORT)) + ("TORCHELASTIC_RUN_ID" in variables)
        host = variables["MASTER_ADDR"]
        host = f"[{host}]" if ":" in host else host
        return f"{host}:{variables.get('JAX_COORDINATOR_PORT', port)}"

    def devices() -> list[int] | None:
        one_each = variables.get("LOCAL_WORLD_SIZE", "1") != "1"  # else all GPUs of the host are this process's
        return [int(variables["LOCAL_RANK"])] if one_each else None

    return _Cluster("torchrun", lambda: variables["WORLD_SIZE"], lambda: variables["RANK"], address, devices)


def _check_nothing_announced(variables: Mapping[str, str]) -> None:
    """Refuses counts without their launcher: every process would believe that it runs alone."""
    for name, launcher in _ANNOUNCED.items():
        value = variables.get(name, "1")
        count = len(value.split(",")) if name in _LISTS else int(value) if value.isdecimal() else 1
        if count > 1:
            raise UserError(
                f"{name} announces {count} processes, but nothing says which of them this is; start it by {launcher}, "
                f"or {_ALONE}"
            )
    if "KUBERNETES_SERVICE_HOST" in variables and "JOB_COMPLETION_INDEX" in variables:
        raise UserError(
            "this is a pod of an indexed Kubernetes job, whose other pods only the package `kubernetes` can find "
            f"(pip install kubernetes); install it, set {ADDRESS}, {COUNT} and {INDEX}, or {_ALONE}"
        )


def _that_say_something(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in variables.items() if value.strip()}


def _number(given: Mapping[str, str], name: str, least: int) -> int | None:
    if name not in given:
        return None
    text = given[name]
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or int(text) < least:
        raise UserError(f"{name} is {text[:80]!r}; give a whole number from {least} on")
    return int(text)


def _check_devices(variables: Mapping[str, str]) -> None:
    value = variables.get(DEVICES, "0")
    if not all(part.strip().isdecimal() for part in value.split(",")):
        raise UserError(f"{DEVICES} is {value!r}; give numbers of this host's GPUs such as 0,1")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
