"""Processes find one another on every platform, or end with one sentence.

The platforms are stand-ins (variables, a metadata server on loopback); the processes, their sockets and what they
compute together are real.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.clusters import find_membership
from qwenvl_jax.runtime.errors import UserError
from tests.runtime.processes import FOREIGN, ROOT, Ended, Parent, joined
from tests.support.ports import free_port

COMPUTE = """
import json, jax
from jax.experimental import multihost_utils
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import exit_on_user_error
with exit_on_user_error():
    distributed.initialize()
    with distributed.together():
        distributed.check_devices()
        gathered = multihost_utils.process_allgather(jax.numpy.int32(distributed.process_index()))
        print(json.dumps([distributed.process_index(), gathered.reshape(-1).tolist()]))
"""


def assert_they_compute(ended: Sequence[Ended]) -> None:
    for index, one in enumerate(ended):
        assert one.code == 0, one.err
        assert json.loads(one.out.splitlines()[-1]) == [index, list(range(len(ended)))]


def assert_one_sentence(ended: Sequence[Ended], *words: str, code: int = 2) -> None:
    for one in ended:
        assert one.code == code, one
        lines = [line for line in one.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, one.err
        assert "Traceback" not in one.err
        for word in words:
            assert word in lines[0], (word, lines[0])


@contextlib.contextmanager
def metadata_server(**attributes: str) -> Iterator[str]:
    """The metadata server of one host: answers for `attributes` (with - for _) as Compute Engine does."""
    known = {name.replace("_", "-"): value for name, value in attributes.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            allowed = self.headers["Metadata-Flavor"] == "Google"
            body = known.get(name, "not found").encode()
            self.send_response(403 if not allowed else 200 if name in known else 404)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def tpu_hosts(hosts: int, slices: int = 1, workers: str = "", **variables: str) -> Iterator[list[dict[str, str]]]:
    """The variables of the processes of TPU hosts made by gcloud: none but where their metadata server is."""
    port = str(free_port())
    workers = workers or ",".join(["127.0.0.1"] * hosts)
    with contextlib.ExitStack() as stack:
        made = []
        for process in range(hosts * slices):
            environment = ["ACCELERATOR_TYPE: 'v5p-16'", f"WORKER_ID: '{process % hosts}'"]
            if slices > 1:
                environment += [f"MEGASCALE_NUM_SLICES: '{slices}'", f"MEGASCALE_SLICE_ID: '{process // hosts}'"]
                environment += ["MEGASCALE_COORDINATOR_ADDRESS: '127.0.0.1:8080'"]
            address = stack.enter_context(
                metadata_server(
                    agent_worker_number=str(process % hosts),
                    worker_network_endpoints=workers,
                    tpu_env="\n".join(environment),
                )
            )
            made.append({"GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": port} | variables)
        yield made


@pytest.mark.parametrize("workers", ["127.0.0.1,127.0.0.1", "unknown:0:127.0.0.1,unknown:1:127.0.0.1"])
def test_hosts_of_a_slice_join_by_the_metadata_server(tpu_parent: Parent, workers: str) -> None:
    with tpu_hosts(2, workers=workers, TPU_WORKER_ID="0") as variables:
        assert_they_compute(tpu_parent.run(COMPUTE, variables))


def test_hosts_of_several_slices_join(tpu_parent: Parent) -> None:
    with tpu_hosts(2, slices=2) as variables:
        assert_they_compute(tpu_parent.run(COMPUTE, variables))


@pytest.mark.parametrize("name", ["TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"])
def test_pods_of_a_tpu_slice_on_kubernetes_join(tpu_parent: Parent, name: str) -> None:
    hosts = "127.0.0.1,localhost" if name == "TPU_WORKER_HOSTNAMES" else "127.0.0.1:8476,localhost:8477"
    with metadata_server(tpu_env="ACCELERATOR_TYPE: 'v5p-16'") as address:  # no worker's number: not made by gcloud
        common = {name: hosts, "GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": str(free_port())}
        variables = [common | {"TPU_WORKER_ID": str(index)} for index in range(2)]
        assert_they_compute(tpu_parent.run(COMPUTE, variables))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Leaves these variables alone of all that launchers set."""

    def leave(variables: Mapping[str, str]) -> None:
        for name in list(os.environ):
            if name.startswith(FOREIGN) and name != "JAX_PLATFORMS":
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return leave


def slurm(count: int) -> list[dict[str, str]]:
    common = {"SLURM_JOB_ID": "123", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    common |= {"SLURM_STEP_NUM_NODES": "1", "JAX_COORDINATOR_PORT": str(free_port())}
    return [common | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]


def open_mpi(count: int) -> list[dict[str, str]]:
    common = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1,10.148.0.1:34911"}
    common |= {"OMPI_COMM_WORLD_SIZE": str(count), "JAX_COORDINATOR_PORT": str(free_port())}
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    return [common | dict.fromkeys(ranks, str(index)) for index in range(count)]


def torchrun(count: int) -> list[dict[str, str]]:
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    common |= {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": str(count), "SLURM_NTASKS": "1"}
    return [common | {"RANK": str(index), "LOCAL_RANK": str(index)} for index in range(count)]


def slurm_starts_torchrun(count: int) -> list[dict[str, str]]:
    return [outer | inner for outer, inner in zip(slurm(1) * count, torchrun(count), strict=True)]


def a_number_by_hand_within_slurm(count: int) -> list[dict[str, str]]:
    return [
        variables | {"JAX_COORDINATOR_ADDRESS": f"localhost:{variables['JAX_COORDINATOR_PORT']}"}
        for variables in slurm(count)
    ]


@pytest.mark.parametrize(
    "launcher", [joined, slurm, open_mpi, torchrun, slurm_starts_torchrun, a_number_by_hand_within_slurm]
)
def test_processes_of_a_launcher_join(parent: Parent, launcher: Callable[[int], list[dict[str, str]]]) -> None:
    assert_they_compute(parent.run(COMPUTE, launcher(2)))


ALONE: dict[str, dict[str, str]] = {
    "nothing": {},
    "a number by hand": {"JAX_NUM_PROCESSES": "1", "SLURM_NTASKS": "8"},
    "one task of Slurm": {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"},
    "one process of torchrun": {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "nohost.invalid"},
    "one host of GKE": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "a pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "empty variables": {"JAX_COORDINATOR_ADDRESS": "", "SLURM_NTASKS": "", "TPU_WORKER_HOSTNAMES": " "},
}


@pytest.mark.parametrize("name", ALONE)
def test_one_process_is_alone_at_once(name: str, only: Callable[[Mapping[str, str]], None]) -> None:
    only(ALONE[name])
    assert find_membership(os.environ, 1) is None
    distributed.initialize()
    assert distributed.process_count() == 1
    with distributed.together():
        assert distributed.gather("own") == ["own"]


def test_a_single_host_of_a_slice_is_alone(tpu_parent: Parent) -> None:
    with tpu_hosts(1) as variables:
        assert_they_compute(tpu_parent.run(COMPUTE, variables))


MISTAKES: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "an allocation without srun": ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, ("srun",)),
    "left over from mpirun": ({"OMPI_COMM_WORLD_SIZE": "8"}, ("OMPI_COMM_WORLD_SIZE announces 8", "mpirun")),
    "Open MPI 5 without mpi4py": ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, ("mpi4py",)),
    "left over from mpiexec": ({"PMI_SIZE": "4"}, ("PMI_SIZE announces 4", "mpi4py")),
    "half of torchrun": ({"WORLD_SIZE": "4", "RANK": "1"}, ("WORLD_SIZE announces 4", "torchrun", "MASTER_ADDR")),
    "GKE without libtpu": ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, ("requirements-tpu.txt",)),
    "slices without libtpu": ({"MEGASCALE_NUM_SLICES": "2"}, ("MEGASCALE_NUM_SLICES announces 2",)),
    "a job of Kubernetes": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, ("kubernetes",)),
    "no address": ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, ("but not JAX_COORDINATOR_ADDRESS",)),
    "no number": ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, ("but not JAX_PROCESS_ID",)),
    "an address alone": ({"JAX_COORDINATOR_ADDRESS": "a:1"}, ("JAX_NUM_PROCESSES and JAX_PROCESS_ID",)),
    "no count": ({"JAX_NUM_PROCESSES": "two"}, ("JAX_NUM_PROCESSES is 'two'",)),
    "none": ({"JAX_NUM_PROCESSES": "0"}, ("JAX_NUM_PROCESSES is '0'; give a whole number from 1 on",)),
    "negative": ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"}, ("JAX_PROCESS_ID is '-1'",)),
    "out of range": ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, ("JAX_PROCESS_ID is 2", "leaves 0 to 1")),
    "no port": (joined(2)[0] | {"JAX_COORDINATOR_ADDRESS": "myhost"}, ("'myhost'", "10.0.0.2:8476")),
    "no such port": (joined(2)[0] | {"JAX_COORDINATOR_ADDRESS": "myhost:99999"}, ("'myhost:99999'",)),
    "odd devices": ({"JAX_LOCAL_DEVICE_IDS": "all"}, ("JAX_LOCAL_DEVICE_IDS is 'all'",)),
    "odd patience": (joined(2)[0] | {"QWENVL_JOIN_SECONDS": "long"}, ("QWENVL_JOIN_SECONDS is 'long'",)),
    "endless count": (joined(2)[0] | {"JAX_NUM_PROCESSES": "9" * 5000}, ("JAX_NUM_PROCESSES is '999",)),
    "endless patience": (joined(2)[0] | {"QWENVL_JOIN_SECONDS": "9" * 400}, ("give whole seconds from 1 to 999999",)),
    "odd Slurm": (slurm(2)[0] | {"SLURM_PROCID": "x"}, ("Slurm", "ValueError")),
    "a rank too high": (torchrun(2)[0] | {"RANK": "5"}, ("torchrun says that this is process 5 of 2",)),
    "a port of torchrun": (torchrun(2)[0] | {"MASTER_PORT": "x"}, ("torchrun", "cannot be asked")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_variables_that_cannot_be_meant_are_one_sentence(name: str, only: Callable[[Mapping[str, str]], None]) -> None:
    variables, words = MISTAKES[name]
    only(variables)
    with pytest.raises(UserError) as refused:
        distributed.initialize()
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_metadata_server_that_is_not_there_is_one_sentence(tpu_parent: Parent) -> None:
    nowhere = {"GCE_METADATA_IP": f"127.0.0.1:{free_port()}"}
    assert_one_sentence(tpu_parent.run(COMPUTE, [nowhere]), "the TPU's metadata server does not answer")


def test_who_is_missing_is_named(parent: Parent) -> None:
    ended = parent.run(COMPUTE, joined(4, QWENVL_JOIN_SECONDS="2")[:2])
    assert_one_sentence(ended, "2 of 4 processes (the JAX_ variables) came within 2 s, missing: 2, 3", code=42)


def test_without_process_0_the_others_say_so(parent: Parent) -> None:
    here, elsewhere = joined(2, QWENVL_JOIN_SECONDS="1")[1], joined(2, QWENVL_JOIN_SECONDS="1")[1]
    elsewhere["JAX_COORDINATOR_ADDRESS"] = "nohost.invalid:1234"
    unreachable = joined(2, QWENVL_JOIN_SECONDS="1")[0]
    unreachable["JAX_COORDINATOR_ADDRESS"] = "nohost.invalid:" + unreachable["JAX_COORDINATOR_ADDRESS"].split(":")[1]
    first, second, third = parent.run(COMPUTE, [here, elsewhere, unreachable])
    assert_one_sentence([first], "process 1 of 2 did not reach process 0", "within 1 s (nobody listens there)", code=42)
    assert_one_sentence([second], "nohost.invalid:1234", "that name is not known here", code=42)
    assert_one_sentence([third], "process 0 does not find itself at nohost.invalid")


def test_numbers_that_are_given_twice_are_named(parent: Parent) -> None:
    variables = joined(3, QWENVL_JOIN_SECONDS="20")
    variables[2]["JAX_PROCESS_ID"] = "1"
    assert_one_sentence(parent.run(COMPUTE, variables), "two processes call themselves process 1 of 3")


def test_counts_that_differ_are_named(parent: Parent) -> None:
    variables = joined(2, QWENVL_JOIN_SECONDS="20")
    variables[1]["JAX_NUM_PROCESSES"] = "3"
    assert_one_sentence(parent.run(COMPUTE, variables), "process 1 (host", "was told of 3 processes, process 0 of 2")


def test_a_port_that_something_else_uses_is_one_sentence(parent: Parent) -> None:
    with metadata_server() as address:
        variables = [of_one | {"JAX_COORDINATOR_ADDRESS": address} for of_one in joined(2, QWENVL_JOIN_SECONDS="2")]
        first, second = parent.run(COMPUTE, variables)
    assert_one_sentence([first], "is taken on this host")
    assert_one_sentence([second], "something else than process 0 of this run answers there", code=42)


# Process 0 waits for a value, 1 fails, 2 waits in a device computation and 3 in one that all would have to join.
FAIL = """
import os, signal, sys, time, jax
from jax.experimental import multihost_utils
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import StorageError, UserError, exit_on_user_error
failing, how = int(sys.argv[1]), sys.argv[2]
with exit_on_user_error():
    distributed.initialize()
    with distributed.together():
        me = distributed.process_index()
        multihost_utils.process_allgather(jax.numpy.int32(me))
        if me == failing:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            end = SystemExit(143)
            if how == "noted exit":
                end.add_note("stopped by SIGTERM")
            raise {"user": UserError("shard 3 is damaged; copy it again"), "bug": KeyError("x")}.get(how, end)
        if me == 0:
            distributed.gather(me)
        multihost_utils.process_allgather(jax.numpy.int32(me))
"""


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("how", "words", "code"),
    [
        ("killed", "ended without a word", 42),
        ("user", "shard 3 is damaged; copy it again", 2),
        ("bug", "KeyError", 1),
        ("exit", "it ended with exit code 143", 143),
        ("noted exit", "stopped by SIGTERM", 143),
    ],
)
def test_one_that_fails_ends_all(parent: Parent, failing: int, how: str, words: str, code: int) -> None:
    ended = parent.run(FAIL, joined(3), str(failing), how)
    failed = ended.pop(failing)
    if how == "killed":
        assert failed.code == -9
    elif how == "user":
        assert (failed.code, failed.err) == (2, "error: shard 3 is damaged; copy it again\n")
    elif how == "bug":
        assert failed.code == 1 and "Traceback" in failed.err
    else:
        assert (failed.code, failed.err) == (143, "")
    assert_one_sentence(ended, words, f"process {failing}", code=code)


def test_a_tool_of_one_process_refuses_to_be_one_of_several(only: Callable[[Mapping[str, str]], None]) -> None:
    for variables, name in ((slurm(2)[1], "Slurm"), (torchrun(2)[0], "torchrun"), (joined(2)[1], "the JAX_ variables")):
        only(variables)
        with pytest.raises(UserError, match=f"chat works as one process, but this is one of several .{name}"):
            distributed.require_alone("chat")
    for variables in (*ALONE.values(), slurm(1)[0], {"SLURM_NTASKS": "8"}, {"JAX_NUM_PROCESSES": "2"}):
        only(variables)
        distributed.require_alone("chat")


def test_a_tool_on_a_host_of_a_slice_says_so_or_leaves_its_tpu_alone(tpu_parent: Parent) -> None:
    code = (
        "import os\n"
        "from qwenvl_jax.runtime import distributed\n"
        "from qwenvl_jax.runtime.errors import exit_on_user_error\n"
        "os.environ.pop('JAX_PLATFORMS') if os.environ['TPU_WORKER_ID'] == '0' else None\n"
        "with exit_on_user_error():\n"
        "    distributed.require_alone('chat')\n"
    )
    with tpu_hosts(2) as variables:
        variables = [of_one | {"TPU_WORKER_ID": str(index)} for index, of_one in enumerate(variables)]
        first, second = tpu_parent.run(code, variables)
    assert_one_sentence([first], "chat works as one process", "JAX_PLATFORMS=cpu")
    assert second.code == 0, second.err


@pytest.mark.slow
def test_processes_of_a_real_open_mpi_5_join() -> None:
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("Open MPI is not installed; it comes with requirements-test.txt")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"):
        environment |= {name: "1", f"{name}_CONFIRM": "1"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [str(mpirun), "--oversubscribe", "-n", "2", sys.executable, "-c", COMPUTE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    gathered = sorted(json.loads(line) for line in run.stdout.splitlines() if line[:2] in ("[0", "[1"))
    assert gathered == [[0, [0, 1]], [1, [0, 1]]]
