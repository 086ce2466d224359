"""Local checkpoints: a restart from a host's own disk, and every reason to take the folder of the run instead."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from qwenvl_jax.checkpoint import file_checksums, lineage, rewind
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.config import TOWERS
from qwenvl_jax.runtime import preflight
from qwenvl_jax.runtime.errors import UserError
from tests.checkpoint.saved_run import MOMENTS, TREE, assert_is, save, state
from tests.checkpoint.test_full_disk import mounted
from tests.runtime.processes import Parent, joined, parents
from tests.support import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> epath.Path:
    """A run with one checkpoint, of step 2, in its folder."""
    run = epath.Path(tmp_path) / "run"
    save(run, 2)
    lineage.write(run, tiny_run.make_config(), dict.fromkeys(TOWERS))
    return run


def save_locally(root: Path, run: epath.Path, *wanted: int, after: int = 0) -> None:
    with LocalCheckpoints(str(root), run).after(after) as local:
        for step in wanted:
            local.save(step, *state(step), {"at": step})


def step_folders(root: Path) -> dict[int, Path]:
    return {int(folder.name): folder for folder in root.glob("run_*/process_*/checkpoints/*")}


def change_a_byte(file: Path) -> None:
    payload = bytearray(file.read_bytes())
    payload[len(payload) // 2] ^= 1
    file.write_bytes(payload)


def newest(root: Path, run: epath.Path, after: int | None = 2) -> tuple[int, Any, Any, dict[str, Any]] | None:
    return LocalCheckpoints(str(root), run).newest_state(after, TREE, MOMENTS)


def test_the_newest_two_are_kept_and_the_state_is_the_same(tmp_path: Path, run: epath.Path, capsys: Any) -> None:
    save_locally(tmp_path / "disk", run, 3, 4, 5)
    assert sorted(step_folders(tmp_path / "disk")) == [4, 5]
    found = newest(tmp_path / "disk", run)
    assert found and found[0] == 5
    assert_is(5, found[1:])
    assert f"the local checkpoint of step 5 in {tmp_path}/disk is the newest one" in capsys.readouterr().out
    assert newest(tmp_path / "disk", run, after=5) is None and capsys.readouterr().out == ""
    save_locally(tmp_path / "disk", run, 5, after=4)  # the run went back to 4, and writes 5 again
    assert sorted(step_folders(tmp_path / "disk")) == [4, 5]
    (home,) = (tmp_path / "disk").glob("run_*/process_0")
    shutil.copytree(home, home.with_name("process_1"))  # of a process on the same machine
    LocalCheckpoints(str(tmp_path / "disk"), run).remove()
    assert [folder.name for folder in home.parent.iterdir()] == ["process_1"]
    shutil.rmtree(home.with_name("process_1"))
    LocalCheckpoints(str(tmp_path / "disk"), run).remove()
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_changed_byte_of_any_file_is_noticed_and_the_older_one_taken(
    tmp_path: Path, run: epath.Path, capsys: Any
) -> None:
    disk = tmp_path / "disk"
    save_locally(disk, run, 3, 4)
    shutil.copytree(disk, tmp_path / "whole")
    names = sorted(file.name for file in step_folders(disk)[4].iterdir())
    assert {"shards.json", "facts.json", "progress.json", "checksums.json", "0.bin"} < set(names)
    for name in names:
        file = step_folders(disk)[4] / name
        if file.stat().st_size:
            change_a_byte(file)
            found = newest(disk, run)
            assert found and found[0] == 3, name
            assert_is(3, found[1:])
            said = capsys.readouterr().out
            assert f"local checkpoints in {disk} cannot be used (step 4: " in said, said
        file.unlink()
        found = newest(disk, run)
        assert found and found[0] == 3, name
        shutil.rmtree(disk)
        shutil.copytree(tmp_path / "whole", disk)


def test_an_unfinished_one_is_no_checkpoint_and_is_removed(tmp_path: Path, run: epath.Path) -> None:
    save_locally(tmp_path / "disk", run, 3, 4)
    whole = step_folders(tmp_path / "disk")[4]
    unfinished = whole.rename(whole.with_name("4.orbax-checkpoint-tmp"))
    found = newest(tmp_path / "disk", run)
    assert found and found[0] == 3
    save_locally(tmp_path / "disk", run, after=3)
    assert not unfinished.exists()


def test_those_of_another_run_are_never_taken(tmp_path: Path, run: epath.Path, capsys: Any) -> None:
    """Neither those of a copy of the run, nor those of an earlier run with the same path and config."""
    save_locally(tmp_path / "disk", run, 4)
    shutil.copytree(run, tmp_path / "copy")
    assert newest(tmp_path / "disk", epath.Path(tmp_path / "copy")) is None
    lineage.write(run, tiny_run.make_config(), dict.fromkeys(TOWERS))  # begun anew
    assert newest(tmp_path / "disk", run) is None
    save_locally(tmp_path / "disk", run, 3)
    said = capsys.readouterr().out
    assert f"{tmp_path}/disk has local checkpoints of other runs as well (run_" in said
    found = newest(tmp_path / "disk", run)
    assert found and found[0] == 3
    assert sorted(step_folders(tmp_path / "disk")) == [3, 4]


def test_another_shape_or_type_falls_back(tmp_path: Path, run: epath.Path, capsys: Any) -> None:
    save_locally(tmp_path / "disk", run, 4)
    other = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), TREE)
    assert LocalCheckpoints(str(tmp_path / "disk"), run).newest_state(2, other, MOMENTS) is None
    assert "(step 4: it holds no 0/decoder/a of shape [30, 100] and type bfloat16)" in capsys.readouterr().out


def test_lines_of_the_log_that_are_gone_are_written_again(tmp_path: Path, run: epath.Path, capsys: Any) -> None:
    """As after a start without local checkpoints, which cuts the log: step 5 has the metrics of one step only."""
    with LocalCheckpoints(str(tmp_path / "disk"), run).after(0) as local:
        local.save(3, *state(3), {"at": 3, "window": [{}]})
        local.save(5, *state(5), {"at": 5, "window": [{}]})
    (run / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    found = newest(tmp_path / "disk", run)
    assert found and found[0] == 5
    (run / "metrics.jsonl").write_text('{"step": 2}\n')
    found = newest(tmp_path / "disk", run)
    assert found and found[0] == 3
    assert "an older one since, and metrics.jsonl has no line of step 4)" in capsys.readouterr().out


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two local checkpoints and one that is being written, but not much more."""
    yield from mounted(tmp_path / "small", "200k")


def test_a_full_disk_costs_one_line(small: Path, run: epath.Path, capsys: Any) -> None:
    with LocalCheckpoints(str(small), run).after(0) as local:
        local.save(3, *state(3), {"at": 3})
        local.wait()
        with (small / "filler").open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file.fileno(), bytes(1024))
        for step in (4, 5):
            local.save(step, *state(step), {"at": step})
        local.wait()
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "No space left on device" in said, said
        assert said.startswith("warning: process 0 has no local checkpoint in ") and "tries again" in said
        (small / "filler").unlink()
        local.save(6, *state(6), {"at": 6})
    assert sorted(step_folders(small)) == [3, 6]
    found = newest(small, run)
    assert found and found[0] == 6


def test_a_folder_that_cannot_be_made_costs_one_line(tmp_path: Path, run: epath.Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    save_locally(tmp_path / "file", run, 3, 4)
    assert capsys.readouterr().err.count("\n") == 1
    assert newest(tmp_path / "file", run) is None


def test_a_return_to_a_local_step_ends_the_later_ones(tmp_path: Path, run: epath.Path) -> None:
    disk = tmp_path / "disk"
    save_locally(disk, run, 3, 4)
    with pytest.raises(UserError, match=r"--from_step=5: .* holds no checkpoint of that step \(there are 2, 3, 4\)"):
        rewind.wanted(run, 5, LocalCheckpoints(str(disk), run))
    local = LocalCheckpoints(str(disk), run)
    assert rewind.wanted(run, 3, local) == 3
    assert_is(3, rewind.state_of(run, 3, TREE, MOMENTS, local))
    found = newest(disk, run)  # killed before step 4 was removed
    assert found and found[0] == 3
    with local.after(3):
        assert list(step_folders(disk)) == [3]
        local.save(4, *state(4), {"at": 4})
    found = newest(disk, run)
    assert found and found[0] == 4


# Two processes with two devices each. `action` is code that has `local`, `state_of(step)` and `shapes`.
TOGETHER = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.config import MeshConfig
from qwenvl_jax.runtime import distributed
from qwenvl_jax.sharding.mesh import make_mesh
root, run, shape, action = sys.argv[1:]
distributed.initialize()
mesh = make_mesh(MeshConfig(*json.loads(shape), 1, 0))
specs = {"split": P("fsdp", "tensor"), "rows": P(("fsdp", "tensor")), "same": P(), "half": P(None, "fsdp")}
dtypes = {"half": "bfloat16"}
def leaf(name, step):
    values = (np.arange(32).reshape(8, 4) * step).astype(dtypes.get(name, "float32"))
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, specs[name]), lambda index: values[index])
def state_of(step):
    return {name: leaf(name, step) for name in specs}, {"count": leaf("same", step)}
def newest():
    found = local.newest_state(2, *state_of(0))
    if found is None:
        return None
    step, params, moments, progress = found
    for one, other in zip(jax.tree.leaves((params, moments)), jax.tree.leaves(state_of(step)), strict=True):
        assert one.dtype == other.dtype and one.sharding == other.sharding
        for ours, theirs in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert np.asarray(ours.data).tobytes() == np.asarray(theirs.data).tobytes()
    assert progress["at"] == step
    return step
local = LocalCheckpoints(root, run)
exec(action)
"""
SAVE = """
with local.after(2):
    for step in (3, 4):
        local.save(step, *state_of(step), {"at": step} if distributed.is_primary() else {})
"""
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    yield from parents(tmp_path_factory.mktemp("processes"))


def together(
    parent: Parent, disk: Path, run: epath.Path, action: str, *, count: int = 2, shape: str = "[1, 2, 2]"
) -> tuple[list[str], str]:
    """The last line that every process printed, and everything that process 0 did."""
    ended = parent.run(TOGETHER, joined(count, **TWO_DEVICES), str(disk), str(run), shape, action)
    assert [one.code for one in ended] == [0] * count, ended
    return [one.out.splitlines()[-1] for one in ended], ended[0].out


@pytest.mark.slow
def test_two_processes_each_read_their_own(tmp_path: Path, run: epath.Path, parent: Parent) -> None:
    """Every reason not to take a step is found by one process, and all of them take the same older one."""
    disk = tmp_path / "disk"
    together(parent, disk, run, SAVE + "print('saved')")
    assert len(list(disk.glob("run_*/process_*/checkpoints/4/checksums.json"))) == 2
    assert together(parent, disk, run, "print(newest(), local.steps())")[0] == ["4 [3, 4]"] * 2

    last, said = together(parent, disk, run, "print(newest())", shape="[1, 4, 1]")
    assert last == ["None"] * 2 and "(step 4: it was written on another mesh; step 3: " in said
    last, said = together(parent, disk, run, "print(newest())", count=1, shape="[1, 2, 1]")
    assert last == ["None"] and "(step 4: 2 processes wrote it, and there are 1 now; step 3: " in said

    (part,) = disk.glob("run_*/process_1/checkpoints/4")
    change_a_byte(part / "0.bin")
    last, said = together(parent, disk, run, "print(newest())")
    assert last == ["3"] * 2 and "(step 4: 0.bin is not what was saved)" in said, said
    shutil.rmtree(part)
    shutil.copytree(part.with_name("3"), part)
    last, said = together(parent, disk, run, "print(newest())")
    assert last == ["3"] * 2 and "(step 4: it is that of step 3 under another name)" in said, said
    facts = json.loads((part / "facts.json").read_text())
    (part / "facts.json").write_text(json.dumps({**facts, "step": 4}))
    file_checksums.write(epath.Path(part), late=True)  # now every file is whole, but of another state than process 0's
    last, said = together(parent, disk, run, "print(newest())")
    assert last == ["3"] * 2 and "(step 4: half is not what was saved)" in said, said
    shutil.rmtree(part)
    last, said = together(parent, disk, run, "print(newest())")
    assert last == ["3"] * 2 and re.search(r"\(step 4: process 1 \(host .+\) has none of it\)", said), said
    shutil.rmtree(part.parents[1])  # the disk of one host
    last, said = together(parent, disk, run, "print(newest())")
    assert last == ["None"] * 2 and "has none of it; step 3: process 1 (host " in said


def test_what_the_config_says_of_local_checkpoints_fits_together() -> None:
    for changes, said in (
        ({"checkpoint__local": "/tmp/x"}, "give a folder and a number of steps or minutes"),
        ({"checkpoint__local_every": 5}, "give a folder and a number of steps or minutes"),
    ):
        with pytest.raises(UserError, match=said):
            tiny_run.make_config(**changes)


def test_the_pre_flight_refuses_a_run_that_begins_and_warns_one_that_continues(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match="is gs://b/x; name a folder on a disk that every host has"):
        preflight.check_own_folder("gs://b/x", 1, refuse=False)
    folder = tmp_path / "new" / "disk"
    preflight.check_own_folder(folder, 1000, refuse=True)
    assert list(folder.iterdir()) == [] and f"{folder} is writable on every host" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    for unfit, needed, problem in (
        (tmp_path / "file" / "disk", 1, "Not a directory"),
        (folder, 10**18, "it has .* free, and local checkpoints need .* there"),
    ):
        sentence = rf"process 0 cannot use {unfit} \({problem}\); "
        with pytest.raises(UserError, match=sentence + "name a folder on a disk that every host has, or leave"):
            preflight.check_own_folder(unfit, needed, refuse=True)
        preflight.check_own_folder(unfit, needed, refuse=False)
        assert re.search("^warning: " + sentence + "mend it for local checkpoints", capsys.readouterr().out)
