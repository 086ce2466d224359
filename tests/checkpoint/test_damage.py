"""Checkpoints whose bytes were lost, cut short or changed: never taken silently, never deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.checkpoint import checksums, steps
from qwenvl_jax.checkpoint.failures import DamagedError, reading
from qwenvl_jax.checkpoint.restore import (
    check_init,
    deferred_params,
    find_starting_point,
    initial_params,
    load_params,
    newest_state,
)
from qwenvl_jax.config import Config
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import merge
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from tests.checkpoint.saved_run import MOMENTS, TREE, assert_is, save, write_run
from tests.support import tiny_run

KINDS = ("cut", "gone", "flipped")

# TensorStore leaves futures behind that nobody waits for once one of them has failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def damage(file: Path, kind: str, rng: np.random.Generator) -> None:
    payload = bytearray(file.read_bytes())
    if kind == "gone":
        file.unlink()
        return
    if kind == "flipped":
        payload[rng.integers(len(payload))] ^= 1 << int(rng.integers(8))
    file.write_bytes(bytes(payload[: {"cut": len(payload) // 2, "empty": 0}.get(kind, len(payload))]))


def test_whatever_happens_to_a_file_the_state_is_one_that_was_saved(tmp_path: Path, capsys: Any) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    save(whole, 3, 6)
    files = sorted(file.relative_to(whole) for file in (whole / "checkpoints/6").rglob("*") if file.is_file())
    rng = np.random.default_rng(0)
    for file in files:
        for kind in KINDS:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(whole, run)
            damage(run / file, kind, rng)
            step, *restored = newest_state(run, TREE, MOMENTS)
            assert_is(step, tuple(restored))  # not one number is another
            said = capsys.readouterr().out
            assert step == 3, f"{kind}: {file}"
            assert "the checkpoint of step 6 is damaged (" in said and said.count("\n") == 1
            assert "it is kept as 6.damaged, step 3 is taken" in said
            assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "6.damaged"]


def test_if_none_is_whole_nothing_is_touched(tmp_path: Path) -> None:
    save(tmp_path / "run", 3, 6)
    for step in (3, 6):
        (tmp_path / f"run/checkpoints/{step}/progress/metadata").write_text("{}")
        (tmp_path / f"run/checkpoints/{step}/params/manifest.ocdbt").unlink()
    with pytest.raises(
        UserError, match=r"all 2 checkpoints of .*run are damaged; .* of step 6: params/manifest.ocdbt is missing"
    ):
        newest_state(tmp_path / "run", TREE, MOMENTS)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["3", "6"]


def test_a_damaged_object_on_gs_is_set_aside(gcs: str, capsys: Any) -> None:
    run = epath.Path(gcs) / "run"
    save(run, 3, 6)
    params = run / "checkpoints/6/params"
    data = [params / name for name in storage.files_below(params) if "d/" in name]
    largest = max(data, key=lambda file: len(file.read_bytes()))
    largest.write_bytes(largest.read_bytes()[:100])
    step, *restored = newest_state(run, TREE, MOMENTS)
    assert step == 3
    assert_is(3, tuple(restored))
    assert "kept as 6.damaged" in capsys.readouterr().out
    assert len(storage.files_below(run / "checkpoints/6.damaged")) > 10 and steps.finished_steps(run) == [3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run of a tiny model with checkpoints of steps 3, 5 and 7, the last its end."""
    folder = tmp_path_factory.mktemp("runs")
    trainable = ("vit", "vit_head", "resampler")
    config = tiny_run.make_config(train__stage="pretrain", train__steps=7, train__trainable=trainable)
    params = qwen_vl.init_params(config.model, jax.random.key(7))
    write_run(folder / "run", config, params, steps=(3, 5, 7))
    return folder / "run", config


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def test_chat_release_and_init_name_the_damaged_step_and_the_newest_whole_one(
    tmp_path: Path, runs: tuple[Path, Config]
) -> None:
    whole, _ = runs
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (5, 7):
        largest(run / f"checkpoints/{step}/params").write_bytes(b"")
    sentence = r"the checkpoint of step 7 of .*run is damaged \(.*\); the newest whole one is of step 3: name that"
    with pytest.raises(UserError, match=sentence):
        load_params(run)
    with pytest.raises(UserError, match=sentence):  # the release reads leaf by leaf
        jax.tree.map(lambda leaf: leaf.load(), deferred_params(run)[0], is_leaf=lambda leaf: hasattr(leaf, "load"))
    later = tiny_run.make_config(init__vit=str(run))
    abstract = abstract_state(later, make_mesh(later.mesh))
    with pytest.raises(UserError, match=sentence):
        initial_params(later, check_init(later), merge(abstract.trainable, abstract.frozen))
    assert load_params(run, step=3)[2] == 3
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "5", "7"]  # readers touch nothing
    shutil.rmtree(run / "checkpoints/3/params")
    with pytest.raises(UserError, match="no older one is whole"):
        load_params(run)
    largest(run / "frozen").write_bytes(b"")
    with pytest.raises(UserError, match=r"the weights in .*run/frozen are damaged"):
        load_params(run)


def test_a_turned_bit_in_a_weight_is_seen_by_chat(tmp_path: Path, runs: tuple[Path, Config]) -> None:
    whole, _ = runs
    shutil.copytree(whole, tmp_path / "run")
    file = largest(tmp_path / "run/checkpoints/7/params")
    payload = bytearray(file.read_bytes())
    payload[len(payload) // 2] ^= 16
    file.write_bytes(bytes(payload))
    with pytest.raises(
        UserError, match=r"step 7 of .* is damaged \(params/.* not what was saved, with .*\); .* step 5"
    ):
        load_params(tmp_path / "run")


def test_weights_of_another_shape_are_refused_in_one_sentence(tmp_path: Path, runs: tuple[Path, Config]) -> None:
    whole, _ = runs
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    values["model"]["resampler"]["query_grid"] += 1
    path.write_text(json.dumps(values))
    source = find_starting_point(tmp_path / "run")
    abstract = qwen_vl.abstract_params(source.config.model)
    from qwenvl_jax.checkpoint.restore import read_leaves

    with pytest.raises(UserError, match=r"holds resampler/.* in the shape \(.*\), its config.json says"):
        read_leaves(source, abstract)


@pytest.fixture(params=["host", "devices"])
def who_sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sums the small leaves: the host, or, as the large ones, the devices."""
    if request.param == "devices":
        monkeypatch.setattr(checksums, "_SMALL", -1)


@pytest.mark.usefixtures("who_sums")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_bit_changes_a_sum(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.int32, np.uint8, jnp.bfloat16]))
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))
    payload = bytearray(
        data.draw(st.binary(min_size=(n := int(np.prod(shape)) * np.dtype(dtype).itemsize), max_size=n))
    )
    before = np.frombuffer(bytes(payload), dtype).reshape(shape)
    bit = data.draw(st.integers(0, 8 * n - 1))
    payload[bit // 8] ^= 1 << bit % 8
    after = np.frombuffer(bytes(payload), dtype).reshape(shape)
    assert checksums.sums({"a": jnp.asarray(before)}) != checksums.sums({"a": jnp.asarray(after)})
    bits = before.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[before.dtype.itemsize]).ravel().astype(np.uint64)
    expected = int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1)).sum() % 2**32)
    assert checksums.sums({"a": jnp.asarray(before)}) == {"a": expected}


@pytest.mark.usefixtures("who_sums")
def test_the_leaves_of_sums_that_were_asked_for_can_be_donated() -> None:
    leaf = jnp.arange(1000, dtype=jnp.float32)
    buffer = leaf.unsafe_buffer_pointer()
    started = checksums.start({"leaf": leaf})
    new = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)(leaf)
    assert leaf.is_deleted() and new.unsafe_buffer_pointer() == buffer
    assert checksums.fetch(started) == {"leaf": checksums.host_sum(np.arange(1000, dtype=np.float32))}


def test_many_leaves_of_both_kinds_have_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_SMALL", 400)
    tree = {str(n): np.arange(n, n + 50 * (n % 3 + 1), dtype=np.float32) for n in range(60)}  # 200 to 600 bytes
    expected = {name: checksums.host_sum(value) for name, value in tree.items()}
    assert checksums.sums(jax.tree.map(jnp.asarray, tree)) == expected


def test_a_change_of_the_progress_is_seen() -> None:
    written = checksums.with_digest({"loader": [1, 2], "window": []})
    assert checksums.check_digest(json.loads(json.dumps(written))) == {"loader": [1, 2], "window": []}
    assert checksums.check_digest({"loader": [1, 2]}) == {"loader": [1, 2]}  # from before there were digests
    damaged: tuple[Any, ...] = ({**written, "loader": [1, 3]}, [], 5)
    for wrong in damaged:
        with pytest.raises(DamagedError):
            checksums.check_digest(wrong)


def test_what_says_nothing_about_the_bytes_is_no_damage() -> None:
    def what(error: Exception) -> type[BaseException]:
        with pytest.raises(BaseException) as caught, reading("gs://bucket/run"):
            raise error
        return caught.type

    assert what(ValueError("UNAVAILABLE: Error reading gs://bucket/x: HTTP 503")) is StorageOutage
    assert what(ValueError("PERMISSION_DENIED: HTTP 403")) is StorageError
    assert what(OSError(5, "Input/output error")) is StorageOutage
    assert what(ValueError('Error opening "a": Too many open files')) is StorageOutage
    assert issubclass(what(ValueError('Error opening "a": Permission denied')), OSError)
    assert what(ValueError("DATA_LOSS: Error decoding")) is DamagedError
    assert what(FileNotFoundError(2, "No such file", "a")) is DamagedError
    assert what(json.JSONDecodeError("x", "y", 0)) is DamagedError
    assert what(StorageError("gone")) is StorageError and what(MemoryError()) is MemoryError
    wrapped = ValueError("reading")
    wrapped.__cause__ = ValueError("DEADLINE_EXCEEDED: no answer")
    assert what(wrapped) is StorageOutage
