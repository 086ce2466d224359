"""Any changed byte of any file of a checkpoint is noticed by whoever reads it; the message names file and tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.checkpoint import checksums, file_checksums
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.imported import save_params
from qwenvl_jax.checkpoint.manager import Checkpoints, restore_frozen, restore_params, restore_state
from qwenvl_jax.checkpoint.restore import deferred_params, load_params
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime.errors import UserError
from tests.checkpoint.saved_run import TREE, save, without_checksums, write_run
from tests.support import tiny_run

MOMENTS = (TREE, {"count": jnp.zeros((), jnp.int32)})

# TensorStore leaves futures behind that nobody waits for once one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` (step 3 and frozen weights of a small model), `import` and `step` (a tree of two leaves)."""
    folder = tmp_path_factory.mktemp("written")
    config = tiny_run.make_config(train__trainable=("vit", "resampler"), train__steps=3, optimizer__warmup_steps=1)
    params = qwen_vl.init_params(config.model, jax.random.key(7))
    write_run(folder / "run", config, params)
    late = jax.tree.map(lambda leaf: Deferred(leaf.shape, np.dtype(leaf.dtype), lambda: np.asarray(leaf)), params)
    save_params(folder / "import", late, config)
    with Checkpoints(folder / "step", keep=1) as checkpoints:
        checkpoints.save(6, TREE, MOMENTS, {})
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def flip(file: Path, offset: int, bit: int) -> None:
    payload = bytearray(file.read_bytes())
    payload[offset] ^= 1 << bit
    file.write_bytes(bytes(payload))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_bit_of_any_file_is_found_and_the_file_named(written: Path, data: st.DataObject) -> None:
    folder = written / data.draw(st.sampled_from(["run/checkpoints/3", "run/frozen", "import/frozen"]))
    file = data.draw(st.sampled_from(files_of(folder)))
    offset = data.draw(st.integers(0, file.stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    before = file.read_bytes()
    try:
        flip(file, offset, bit)
        with pytest.raises(DamagedError) as error:
            file_checksums.verify(epath.Path(folder))
        assert str(file.relative_to(folder)) in str(error.value)
    finally:
        file.write_bytes(before)
    file_checksums.verify(epath.Path(folder))


def largest(folder: Path) -> Path:
    return max(files_of(folder), key=lambda file: file.stat().st_size)


def in_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "training": ("step/checkpoints/6/params", lambda run: restore_state(run, 6, TREE, MOMENTS)),
    "moments": ("step/checkpoints/6/optimizer", lambda run: restore_state(run, 6, TREE, MOMENTS)),
    "chat": ("run/checkpoints/3/params", lambda run: load_params(run)),
    "frozen": ("run/frozen", lambda run: load_params(run)),
    "imported": ("import/frozen", lambda run: load_params(run)),
    "release": ("run/checkpoints/3/params", lambda run: deferred_params(run)),
    "release, frozen": ("run/frozen", lambda run: deferred_params(run)),
    "another dtype": ("step/checkpoints/6/params", lambda run: restore_params(run, 6, in_bfloat16(TREE))),
    "frozen, another dtype": (
        "import/frozen",
        lambda run: restore_frozen(run, in_bfloat16(qwen_vl.abstract_params(tiny_run.make_config().model))),
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_tensor(tmp_path: Path, written: Path, reader: str) -> None:
    where, read = READERS[reader]
    name = where.split("/")[0]
    shutil.copytree(written / name, tmp_path / name)
    folder = tmp_path / where
    read(tmp_path / name)
    file = largest(folder)
    flip(file, file.stat().st_size // 2, 3)
    with pytest.raises((DamagedError, UserError)) as error:
        read(tmp_path / name)
    assert str(file.relative_to(folder)) in str(error.value)
    assert "is not what was saved, with the weights or moments of " in str(error.value)


def test_the_rest_of_a_checkpoint_may_be_damaged_for_who_does_not_read_it(tmp_path: Path, written: Path) -> None:
    shutil.copytree(written / "run", tmp_path / "run")
    flip(largest(tmp_path / "run/checkpoints/3/optimizer"), 5, 1)
    load_params(tmp_path / "run")


def test_the_work_is_shared_and_nothing_left_out(tmp_path: Path, written: Path) -> None:
    shutil.copytree(written / "step/checkpoints/6", tmp_path / "6")
    folder = epath.Path(tmp_path / "6")
    for file in files_of(tmp_path / "6"):
        if file.name == file_checksums.NAME:
            continue
        before = file.read_bytes()
        flip(file, 0, 0)
        finders = 0
        for part in range(3):
            try:
                file_checksums.verify(folder, part=part, parts=3)
            except DamagedError:
                finders += 1
        assert finders == 1
        file.write_bytes(before)


def test_what_is_missing_is_named_and_older_checkpoints_have_no_checksums(tmp_path: Path, written: Path) -> None:
    shutil.copytree(written / "step", tmp_path / "step")
    step = tmp_path / "step/checkpoints/6"
    largest(step / "params").unlink()
    with pytest.raises(DamagedError, match=r"params/.* is missing"):
        restore_state(tmp_path / "step", 6, TREE, MOMENTS)
    (step / file_checksums.NAME).unlink()
    with pytest.raises(DamagedError, match=r"checksums.json is missing"):
        restore_state(tmp_path / "step", 6, TREE, MOMENTS)
    shutil.copytree(written / "step/checkpoints/6", tmp_path / "old/checkpoints/6")
    without_checksums(tmp_path / "old/checkpoints/6")
    restore_state(tmp_path / "old", 6, TREE, MOMENTS)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 6), max_size=3),
    dtype=st.sampled_from([np.float32, np.int32, np.uint8, jnp.bfloat16]),
    seed=st.integers(0, 99),
)
def test_hosts_and_devices_take_the_same_sum(shape: list[int], dtype: Any, seed: int) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    leaf = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8).view(dtype).reshape(shape)
    assert checksums.host_sum(leaf) == checksums.sums({"a": jnp.asarray(leaf)})["a"]


def test_a_sum_over_several_blocks() -> None:
    leaf = np.random.default_rng(0).standard_normal((3, 1_000_003), np.float32)
    assert checksums.host_sum(leaf) == checksums.sums({"a": jnp.asarray(leaf)})["a"]


def test_checksums_on_gs_come_from_the_listing(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = epath.Path(gcs) / "run"
    save(run, 6)
    folder = run / "checkpoints/6"
    monkeypatch.setattr(file_checksums.storage, "open_read", None)  # no array is read
    file_checksums.verify(folder)
    file = max((folder / name for name in json.loads((folder / "checksums.json").read_text())["files"]), key=str)
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(bytes(payload))
    with pytest.raises(DamagedError, match=file.name):
        file_checksums.verify(folder)
