"""Profiles, the compilation ahead, and the promise that nothing is fetched from the devices between log steps."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from qwenvl_jax.config import WatchingConfig
from qwenvl_jax.runtime import host_sync
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import loop
from qwenvl_jax.training.ledger import Ledger
from qwenvl_jax.training.profiler import Profiler
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import TrainStep, make_train_step
from qwenvl_jax.training.watched_step import WatchedStep
from tests.support import tiny_run


@pytest.mark.parametrize(
    "fetch", [float, bool, int, lambda value: value.tolist(), jax.device_get, str], ids=lambda fetch: fetch.__name__
)
def test_a_fetch_is_refused_within_the_block_and_in_this_thread_alone(fetch: object) -> None:
    value = jnp.ones(()) + 1
    with host_sync.refused():
        with pytest.raises(RuntimeError, match="fetched from the devices between log steps"):
            fetch(value)  # type: ignore[operator]
        with host_sync.allowed():
            fetch(value)  # type: ignore[operator]
        with pytest.raises(RuntimeError, match="fetched"):
            fetch(value)  # type: ignore[operator]
        thread = threading.Thread(target=fetch, args=(value,))  # type: ignore[arg-type]
        thread.start()
        thread.join()
        jax.block_until_ready(value)  # waits, but copies nothing
    fetch(value)  # type: ignore[operator]
    with host_sync.refused(unless=True):
        fetch(value)  # type: ignore[operator]


@pytest.mark.slow
def test_the_loop_fetches_nothing_between_log_steps(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.make_config(tiny_data, train__steps=6, train__log_every=2, train__checkpoint_every=3)
    assert config.watching.host_sync == "refused"
    config = dataclasses.replace(config, watching=dataclasses.replace(config.watching, report_minutes=0.01))
    assert loop.train(config, tmp_path / "run") == 6  # with log lines, checkpoints and reports
    assert "Finished after 6 steps." in (tmp_path / "run/report.html").read_text()
    call = WatchedStep.__call__

    def fetching(self: WatchedStep, *arguments: object) -> object:
        state, metrics = call(self, *arguments)  # type: ignore[arg-type]
        float(metrics["loss"])
        return state, metrics

    monkeypatch.setattr(WatchedStep, "__call__", fetching)
    with pytest.raises(RuntimeError, match="between log steps"):
        loop.train(config, tmp_path / "fetching")


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Gives the names of the threads that have compiled the step since the last call, by JAX's log."""

    def since() -> list[str]:
        records = [record for record in caplog.records if "XLA compilation of jit(step_fn)" in record.getMessage()]
        caplog.clear()
        return [record.threadName or "" for record in records]

    jax.config.update("jax_log_compiles", True)
    try:
        yield since
    finally:
        jax.config.update("jax_log_compiles", False)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"anomalies__loss_factor": 3.0}, id="spikes"),
        pytest.param({}, id="plain", marks=pytest.mark.slow),
        pytest.param({"optimizer__kind": "muon"}, id="muon", marks=pytest.mark.slow),
        pytest.param(
            {"data__images_per_row": 0.0, "train__trainable": ("decoder",)}, id="text", marks=pytest.mark.slow
        ),
    ],
)
def test_a_start_compiles_the_step_once_and_ahead(
    changes: dict[str, Any], tiny_data: Path, tmp_path: Path, compilations: Callable[[], list[str]]
) -> None:
    changes = {"optimizer__warmup_steps": 1, "train__steps": 4, "train__checkpoint_every": 2} | changes
    config = tiny_run.make_config(tiny_data, **changes)
    loop.train(config, tmp_path / "run")
    assert compilations() == ["compilation_0"]
    loop.train(config, tmp_path / "run", from_step=2)
    assert compilations() == ["compilation_0"]


def test_a_run_that_takes_no_step_compiles_none(
    tiny_data: Path, tmp_path: Path, compilations: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.make_config(tiny_data, optimizer__warmup_steps=1, train__steps=2)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=1))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loop.train(config, tmp_path / "run")
    assert compilations() == ["MainThread"]
    monkeypatch.undo()
    monkeypatch.setattr(loop, "is_unevaluated", lambda *_: True)
    loop.train(config, tmp_path / "run", [lambda *_: lambda *_: {}])
    assert compilations() == []


def test_an_error_of_the_weights_is_told_once_the_compiler_has_ended(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []

    def resume(*_: object) -> None:
        raise UserError("a damaged checkpoint")

    monkeypatch.setattr(loop, "resume", resume)

    def compile_ahead(*_: object) -> None:
        time.sleep(0.5)
        ended.append(True)

    monkeypatch.setattr(TrainStep, "compile_ahead", compile_ahead)
    with pytest.raises(UserError, match="a damaged checkpoint"):
        loop.train(tiny_run.make_config(tiny_data), tmp_path / "run")
    assert ended == [True] and "ends as soon as the compiler is done with the step" in capsys.readouterr().out


def test_the_first_step_waits_for_the_compilation_and_raises_its_error(tmp_path: Path) -> None:
    compilation: Future[None] = Future()
    threading.Timer(0.2, compilation.set_exception, [UserError("the compiler refuses it")]).start()
    config = tiny_run.make_config()
    mesh = loop.checked_mesh(config)
    abstract = abstract_state(config, mesh)
    with (
        WatchedStep(
            make_train_step(config, mesh, abstract), WatchingConfig(), epath.Path(tmp_path), Ledger(), compilation
        ) as take_step,
        pytest.raises(UserError, match="the compiler refuses it"),
    ):
        take_step(1, abstract, tiny_run.random_batch(config))


def profiles(folder: Path) -> dict[str, list[str]]:
    """Names of the planes of each trace, by its folder."""
    planes = {}
    for path in sorted(folder.glob("profile/plugins/profile/*/*.xplane.pb")):
        planes[path.parent.name] = [plane.name for plane in jax.profiler.ProfileData.from_file(str(path)).planes]
    return planes


def work(profiler: Profiler, steps: range) -> None:
    for step in steps:
        profiler.begin(step)
        profiler.end(step, jnp.ones(8) * step)


def test_chosen_steps_are_traced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = WatchingConfig(profile_steps=(2, 3), profile_every=6)
    with Profiler(settings, epath.Path(tmp_path)) as profiler:
        work(profiler, range(1, 9))
    assert list(profiles(tmp_path)) == ["steps_2_to_3", "steps_6_to_8"]
    assert all("/host:CPU" in planes for planes in profiles(tmp_path).values())
    assert capfd.readouterr().out.count("profile of steps") == 2


def test_a_signal_asks_for_the_next_three_steps(tmp_path: Path) -> None:
    former = signal.getsignal(signal.SIGUSR1)
    with Profiler(WatchingConfig(), epath.Path(tmp_path)) as profiler:
        work(profiler, range(1, 3))
        os.kill(os.getpid(), signal.SIGUSR1)
        work(profiler, range(3, 8))
    assert list(profiles(tmp_path)) == ["steps_3_to_5"]
    assert signal.getsignal(signal.SIGUSR1) is former


def test_a_trace_that_cannot_be_made_or_kept_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = WatchingConfig(profile_steps=(1, 1))
    jax.profiler.start_trace(str(tmp_path / "other"))
    try:
        with Profiler(settings, epath.Path(tmp_path)) as profiler:
            work(profiler, range(1, 3))
    finally:
        jax.profiler.stop_trace()
    (tmp_path / "profile").write_text("a file")
    with Profiler(settings, epath.Path(tmp_path)) as profiler:
        work(profiler, range(1, 3))
    assert capfd.readouterr().out.count("training goes on") == 2


def test_a_run_that_ends_within_a_trace_leaves_none(tmp_path: Path) -> None:
    with Profiler(WatchingConfig(profile_steps=(1, 5)), epath.Path(tmp_path)) as profiler:
        work(profiler, range(1, 3))
    assert not profiles(tmp_path)
    jax.profiler.start_trace(str(tmp_path / "next"))  # no trace goes on
    jax.profiler.stop_trace()


@pytest.mark.parametrize("steps", [(1,), (3, 2), (0, 4), (1, 2, 3)])
def test_steps_of_a_profile_are_a_first_and_a_last(steps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"config\.watching\.profile_steps is .*; give the first and the last step"):
        tiny_run.make_config(watching__profile_steps=steps)
