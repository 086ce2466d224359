"""The pre-flight: every fault is one sentence on all processes and names the host. Real processes and devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwenvl_jax.runtime import disk, preflight, storage
from qwenvl_jax.runtime.errors import UserError
from tests.runtime.processes import ROOT, Ended, Parent, joined

# `fault` is code that process 1 runs before its pre-flight.
CHECK = """
import json, os, sys, time, jax, numpy as np
from qwenvl_jax.config import MeshConfig
from qwenvl_jax.runtime import distributed, preflight
from qwenvl_jax.runtime.errors import exit_on_user_error
from qwenvl_jax.sharding.mesh import make_mesh
folder, fault, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if os.environ["JAX_PROCESS_ID"] == "1":
    exec(fault)
with exit_on_user_error():
    distributed.initialize()
    with distributed.together():
        preflight.check(make_mesh(MeshConfig(*shape, 1, 0)), folder, 1000)
        print(distributed.process_index(), "is ready")
"""
FLAGS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}


def fly(parent: Parent, folder: Path, fault: str = "", count: int = 2, shape: str = "[1, 2, 2]") -> list[Ended]:
    variables = joined(count, QWENVL_PREFLIGHT_SECONDS="20", **FLAGS)
    return parent.run(CHECK, variables, str(folder), fault, shape)


def assert_all_say(ended: Sequence[Ended], code: int, *patterns: str) -> None:
    for one in ended:
        assert one.code == code, one
        lines = [line for line in one.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in one.err, one.err
        for pattern in patterns:
            assert re.search(pattern, lines[0]), (pattern, lines[0])


def test_hosts_in_good_order_are_one_line(parent: Parent, tmp_path: Path) -> None:
    ended = fly(parent, tmp_path / "new" / "run")
    assert [one.code for one in ended] == [0, 0], ended
    line, ready = [line for line in ended[0].out.splitlines() if "[Gloo]" not in line]
    expected = (
        rf"pre-flight passed: 2 processes, 4 devices, sums along fsdp and tensor exact, {tmp_path}/new/run writable "
        r"with [\d.,]+ GiB free, clocks within \d\.\d s \(\d+\.\d s\)"
    )
    assert re.fullmatch(expected, line), line
    assert ready == "0 is ready" and ended[1].out.endswith("1 is ready\n") and "passed" not in ended[1].out
    assert list(tmp_path.iterdir()) == []


LEAVES_A_FILE = """
look = preflight._try_to_write
def look_and_leave(first, mark):
    (first.parent / "other").write_text("")
    return look(first, mark)
preflight._try_to_write = look_and_leave
"""


def test_a_new_folder_into_which_somebody_writes_meanwhile_stays(parent: Parent, tmp_path: Path) -> None:
    ended = fly(parent, tmp_path / "new" / "run", LEAVES_A_FILE)
    assert [one.code for one in ended] == [0, 0], ended
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["other"]


FAULTS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "a process that does not come": (
        "preflight.check_collectives = lambda *_: time.sleep(1000)",
        42,
        (r"process 1 \(host .+\) did not come to the product on every device within 20 s",),
    ),
    "a device that does not answer": (
        "preflight._wrong_devices = lambda *_: time.sleep(1000)",
        42,
        (r"process 1 \(host .+\) did not finish the product on every device within 20 s",),
    ),
    "a device that computes wrongly": (
        "make = jax.make_array_from_callback\n"
        "def make_with_one_changed(shape, sharding, at):\n"
        "    broken = sorted(map(str, jax.local_devices()))[1]\n"
        "    arrays = [np.array(at(index)) + (str(device) == broken) * np.eye(128, dtype=np.float32)\n"
        "              for device, index in sharding.addressable_devices_indices_map(shape).items()]\n"
        "    devices = sharding.addressable_devices_indices_map(shape)\n"
        "    shards = [jax.device_put(array, device) for array, device in zip(arrays, devices)]\n"
        "    return jax.make_array_from_single_device_arrays(shape, sharding, shards)\n"
        "jax.make_array_from_callback = make_with_one_changed",
        42,
        (r"the product on every device is wrong on device \d+ of process 1 \(host .+\); exchange that host",),
    ),
    "a folder that one process may not write": (
        "try_folder = preflight.check_folder\n"
        "preflight.check_folder = lambda folder: (os.setuid(65534), try_folder(folder))",
        2,
        (r"process 1 \(host .+\) cannot write to .+/run \(Permission denied\)",),
    ),
    "another folder": (
        "folder += '_elsewhere'",
        2,
        (r"run is another folder on process 1 \(host .+\) than on process 0|_elsewhere is another folder",),
    ),
    "a clock that is wrong": (
        "now = time.time\ntime.time = lambda: now() - 100",
        2,
        (r"the clock of process 1 \(host .+\) differs from that of process 0 by (99|100|101) s",),
    ),
    "other devices": (
        "kind = jax.local_devices\njax.local_devices = lambda: kind()[:1]",
        2,
        (r"process 1 \(host .+\) differs from process 0 in the number of its devices: 1 instead of 2",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence_that_names_the_process(parent: Parent, tmp_path: Path, name: str) -> None:
    fault, code, patterns = FAULTS[name]
    if "setuid" in fault and os.geteuid():
        pytest.skip("only root can become another user")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "run").mkdir()
    ended = fly(parent, tmp_path / "run", fault)
    if "_elsewhere" in fault:
        ended = ended[:1]  # process 1 says its name of the folder
    assert_all_say(ended, code, *patterns)
    assert list((tmp_path / "run").iterdir()) == []


VERSIONS = """
import os
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import exit_on_user_error
from qwenvl_jax.runtime.versions import SETUP_AGAIN
distributed.initialize()
with exit_on_user_error():
    distributed.agree({"Python": "3.11", "jax": os.environ["VERSION"]}, SETUP_AGAIN)
"""


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        ("2122", r"process 1 \(host .+\) differs from the others in jax: 1 instead of 2; run setup again"),
        ("1122", r"processes 2 and 3 \(hosts .+ and .+\) differ from the others in jax: 2 instead of 1; run setup"),
        ("1222", r"process 0 \(host .+\) differs from the others in jax: 1 instead of 2; run setup again"),
        ("2123", r"processes 1 and 3 \(hosts .+ and .+\) differ from the others in jax: 1 or 3 instead of 2"),
    ],
)
def test_hosts_with_another_version_are_named(parent: Parent, versions: str, sentence: str) -> None:
    variables = [of_one | {"VERSION": version} for of_one, version in zip(joined(4), versions, strict=True)]
    assert_all_say(parent.run(VERSIONS, variables), 2, sentence)


def test_too_little_space_is_refused_and_nothing_is_created(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert preflight.check_space(folder, 1000) == pytest.approx(disk.free_bytes(storage.path(tmp_path)), rel=0.1)
    with pytest.raises(UserError, match=r"has [\d.,]+ GiB free, and the next checkpoints need 953\.7 GiB|need 9"):
        preflight.check_space(folder, 10**15)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_written_and_left_as_it_was(gcs: str) -> None:
    preflight.check_folder(f"{gcs}/run")
    assert not storage.exists(f"{gcs}/run")
    assert preflight.check_space(f"{gcs}/run", 10**18) is None
    with pytest.raises((UserError, storage.StorageError), match="does not exist"):
        preflight.check_folder("gs://no-such-bucket/run")


@pytest.mark.slow
def test_the_command_checks_and_leaves_nothing(tiny_data: Path, tmp_path: Path) -> None:
    config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:{tiny_data}"
    command = [sys.executable, "-m", "qwenvl_jax.preflight", config]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    passed = run(f"--workdir={tmp_path / 'run'}")
    assert passed.returncode == 0 and passed.stdout.startswith("pre-flight passed: 1 process, 1 device, "), passed
    missing = run()
    assert missing.returncode == 2 and "--workdir is missing" in missing.stderr
    other = run(f"--workdir={tmp_path / 'run'}", "--topology=v5e:2x4")
    assert other.returncode == 2 and "the devices are cpu, not the v5e of --topology=v5e:2x4" in other.stderr
    assert list(tmp_path.iterdir()) == []
