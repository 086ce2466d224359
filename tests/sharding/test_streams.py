"""Which processes build which logical streams, and that no two need to build the same one."""

from __future__ import annotations

import dataclasses
import re
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import stage2_multitask
from qwenvl_jax.config import DataConfig, MeshConfig, load_config
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import check_streams, streams_of
from tests.support import tiny_run
from tests.support.chips import chips, grid_mesh


def data_of(rows: int, groups: int, streams: int) -> DataConfig:
    data = tiny_run.make_config().data
    return dataclasses.replace(data, rows_per_step=rows, accumulation=1, image_groups=groups, streams=streams)


def mesh_of(processes: Any) -> Any:
    """A mesh whose devices are of these processes, [data, fsdp, tensor]."""
    processes = np.asarray(processes)
    devices = np.empty(processes.shape, object)
    for index in np.ndindex(processes.shape):
        devices[index] = types.SimpleNamespace(process_index=int(processes[index]))
    return types.SimpleNamespace(
        devices=devices, shape=dict(zip(("data", "fsdp", "tensor"), processes.shape, strict=True))
    )


def in_order(hosts: int, chips_per_host: int) -> Any:
    return mesh_of(np.arange(hosts).repeat(chips_per_host).reshape(1, -1, 1))


def changed(data: DataConfig, sentence: str) -> DataConfig:
    """The config after the change that the sentence names."""
    values: dict[str, Any] = {key: int(value) for key, value in re.findall(r"config\.data\.(\w+)=(\d+)", sentence)}
    assert values
    return dataclasses.replace(data, **values)


def test_as_many_hosts_as_streams_are_enough_and_more_are_refused() -> None:
    check_streams(data_of(32, 8, 8), in_order(8, 4))
    check_streams(data_of(32, 8, 8), in_order(2, 16))
    with pytest.raises(UserError) as error:
        check_streams(data_of(32, 8, 8), in_order(16, 2))
    assert str(error.value) == (
        "16 processes share 8 logical streams, and 2 of them would read, decode and pack the same one; set "
        "config.data.streams=16 and config.data.image_groups=16"
    )


def test_only_the_streams_are_to_be_changed_if_the_groups_suffice() -> None:
    with pytest.raises(UserError, match=r"2 processes share 1 logical stream, .*; set config.data.streams=2$"):
        check_streams(data_of(8, 4, 1), in_order(2, 1))


def test_one_process_may_have_any_streams() -> None:
    for streams in (1, 2, 4, 8):
        check_streams(data_of(8, 8, streams), in_order(1, 4))


def test_hosts_that_hold_the_same_rows_must_build_the_same_streams() -> None:
    """`tensor` spans two hosts: every stream is needed by both, however many there are."""
    check_streams(data_of(8, 8, 4), mesh_of([[[0, 1], [0, 1], [2, 3], [2, 3]]]))
    with pytest.raises(UserError, match=r"4 processes share 1 logical stream, and 4 of them .*streams=2"):
        check_streams(data_of(8, 8, 1), mesh_of([[[0, 1], [0, 1], [2, 3], [2, 3]]]))


def test_a_run_that_has_begun_is_only_warned(capsys: pytest.CaptureFixture[str]) -> None:
    log.console.cache_clear()
    check_streams(data_of(32, 8, 8), in_order(16, 2), continued=True)
    text = capsys.readouterr().out
    log.console.cache_clear()
    assert text.count("\n") == 1 and text.startswith("warning: 16 processes share 8 logical streams, and 2 of them")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_the_change_that_is_named_suffices(draw: st.DataObject) -> None:
    """On any mesh and any spread of its devices over hosts, for streams of any number."""
    shape = tuple(draw.draw(st.integers(1, 4)) for _ in range(3))
    hosts = draw.draw(st.integers(1, 6))
    homes = draw.draw(st.lists(st.integers(0, hosts - 1), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    mesh = mesh_of(np.array(homes).reshape(shape))
    rows = shape[0] * shape[1] * draw.draw(st.integers(1, 4))
    groups = draw.draw(st.sampled_from([count for count in range(1, rows + 1) if rows % count == 0]))
    streams = draw.draw(st.sampled_from([count for count in range(1, groups + 1) if groups % count == 0]))
    data = data_of(rows, groups, streams)
    try:
        check_streams(data, mesh)
    except UserError as error:
        data = changed(data, str(error))
        data.check("config.data")
        check_streams(data, mesh)
    shards = shape[0] * shape[1]
    parts = mesh.devices.reshape(shards, -1)
    holders = [{device.process_index for device in part} for part in parts]
    for stream in range(data.streams):
        needed = [holder for part, holder in enumerate(holders) if stream in streams_of([part], shards, data.streams)]
        assert len(set.union(*needed)) <= max(map(len, holders))


@pytest.mark.parametrize(("streams", "hosts"), [(64, 4), (128, 2)])
def test_hosts_of_a_pod_do_not_hold_neighbouring_rows(streams: int, hosts: int) -> None:
    """A host of 2 x 2 chips has two pairs of neighbours along `fsdp`, so it needs two streams at least."""
    mesh = grid_mesh(MeshConfig(-1, 64, 1, 1, 0), chips((8, 8, 8)))
    data = load_config(stage2_multitask.get_config(mesh="v4")).data
    with pytest.raises(UserError, match=rf"and {hosts} of them would .*; set config.data.streams=256$"):
        check_streams(dataclasses.replace(data, streams=streams), mesh)
    check_streams(data, mesh)
