"""Steps that are left out: the rule on the devices, the limits, the dumped batch, its replay."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import AnomaliesConfig, validate
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import anomaly_dump
from qwenvl_jax.training.anomalies import Anomalies, reason
from qwenvl_jax.training.loop import train
from qwenvl_jax.training.means import judge, no_means
from qwenvl_jax.training.nonfinite import first_nonfinite, nonfinite_leaves
from tests.checkpoint.saved_run import assert_same_run, lines
from tests.support import tiny_run


def judged(rule: AnomaliesConfig, losses: list[float], norms: list[float]) -> list[bool]:
    """Which steps are regular."""
    means = no_means(rule)
    step = jax.jit(lambda loss, norm, means: judge(rule, loss, norm, means))
    regular = []
    for loss, norm in zip(losses, norms, strict=True):
        one, means = step(jnp.float32(loss), jnp.float32(norm), means)
        regular.append(bool(one))
    return regular


def test_without_a_rule_only_numbers_that_are_not_finite_are_anomalies() -> None:
    assert judged(AnomaliesConfig(), [1, math.nan, 1e30, 1, 1], [1, 1, 1, math.inf, 1]) == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert no_means(AnomaliesConfig()) == ()


numbers = st.one_of(st.floats(0.125, 8, width=32), st.sampled_from([math.nan, math.inf, 1e6]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), max_size=20),
    st.sampled_from([0.0, 1.5, 3.0]),
    st.sampled_from([0.0, 2.0]),
    st.integers(0, 4),
    st.integers(1, 10),
)
def test_spikes_are_those_of_plain_running_means(
    values: list[tuple[float, float]], loss_factor: float, gradient_factor: float, warmup: int, mean_steps: int
) -> None:
    rule = AnomaliesConfig(loss_factor, gradient_factor, mean_steps, warmup)
    expected = []
    kept: list[tuple[float, float]] = []
    for pair in values:
        regular = all(map(math.isfinite, pair))
        weights = [(1 - 1 / mean_steps) ** age for age in range(len(kept))][::-1]
        if regular and len(kept) >= max(1, warmup):
            for value, old, factor in zip(pair, zip(*kept, strict=True), (loss_factor, gradient_factor), strict=True):
                mean = sum(w * each for w, each in zip(weights, old, strict=True)) / sum(weights)
                if factor and abs(value - factor * mean) < 1e-4 * value:
                    return  # float32 may decide either way
                regular &= not factor or value <= factor * mean
        expected.append(regular)
        kept += [pair] if regular else []
    assert judged(rule, [pair[0] for pair in values], [pair[1] for pair in values]) == expected


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss_factor": 0.5}, "must be greater than 1"),
        ({"gradient_factor": 1.0}, "must be greater than 1"),
        ({"max_recent": 50, "recent_steps": 40}, "must be at most"),
    ],
)
def test_rules_that_cannot_work_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        validate(AnomaliesConfig(**values), "config.anomalies")


def metrics(loss: float, skipped: int) -> dict[str, jax.Array]:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1), "skipped": jnp.int32(skipped)}


def watch(tiny_data: Path, workdir: Path, steps: list[int], progress: dict[str, Any], **limits: int) -> Anomalies:
    """Watches steps, 1 for an anomaly, until there are too many; all of them get the same batch."""
    config = tiny_run.make_config(tiny_data)
    config = dataclasses.replace(config, anomalies=AnomaliesConfig(**limits))
    anomalies = Anomalies(config, epath.Path(workdir), [0], progress)
    with make_loader(config, load_tokenizer(config.tokenizer)) as loader:
        next(loader)
        for step, skipped in enumerate(steps, start=1):
            anomalies.add(step, metrics(math.nan if skipped else 1.0, skipped), loader.last())
            if anomalies.too_many():
                break
        else:
            anomalies.progress(())
    return anomalies


def test_too_many_in_a_row_or_among_the_last_end_the_run(tiny_data: Path, tmp_path: Path) -> None:
    limits = {"max_in_a_row": 3, "max_recent": 4, "recent_steps": 6, "dumps": 0}
    watch(tiny_data, tmp_path, [1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1], {}, **limits).raise_if_too_many()
    with pytest.raises(UserError, match=r"^3 steps in a row up to step 4 were left out"):
        watch(tiny_data, tmp_path, [0, 1, 1, 1, 0], {}, **limits).raise_if_too_many()
    with pytest.raises(UserError, match=r"^4 of the last 5 steps up to step 5 were left out"):
        watch(tiny_data, tmp_path, [1, 1, 0, 1, 1, 0], {}, **limits).raise_if_too_many()
    assert (tmp_path / "anomalies/step_4/anomaly.json").exists()  # the last one is written whatever `dumps` says


def test_the_counts_continue_after_a_restart_and_begin_anew_after_an_end(tiny_data: Path, tmp_path: Path) -> None:
    limits = {"max_in_a_row": 3, "max_recent": 9, "recent_steps": 9, "dumps": 0}
    first = watch(tiny_data, tmp_path, [0, 1, 1], {}, **limits)
    saved = {"anomalies": first.progress(())}
    assert saved == {"anomalies": {"total": 2, "recent": [2, 3]}}
    config = dataclasses.replace(tiny_run.make_config(tiny_data), anomalies=AnomaliesConfig(**limits))
    second = Anomalies(config, epath.Path(tmp_path), [0], saved)
    with make_loader(config, load_tokenizer(config.tokenizer)) as loader:
        next(loader)
        second.add(4, metrics(math.nan, 1), loader.last())
    assert second.progress(()) == {"total": 3, "recent": []}
    with pytest.raises(UserError, match="3 steps in a row up to step 4"):
        second.raise_if_too_many()


def test_the_batch_of_an_anomaly_is_written_with_its_samples(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run.make_config(tiny_data, data__image_groups=2, data__streams=2)
    tokenizer = load_tokenizer(config.tokenizer)
    with make_loader(config, tokenizer) as loader:
        whole = next(loader)
        expected = loader.last()
    for index in range(2):  # two processes with a stream each
        with make_loader(config, tokenizer, streams=[index]) as loader, pytest.MonkeyPatch.context() as patch:
            next(loader)
            patch.setattr("qwenvl_jax.runtime.distributed.process_index", lambda index=index: index)
            numbers = {"loss": math.nan, "grad_norm": math.inf}
            facts = {"step": 7, "processes": 2, "reason": "a test", "updates": 6, "metrics": numbers}
            anomaly_dump.write(epath.Path(tmp_path), facts, loader.last(), [index], config)
    facts, batch, samples = anomaly_dump.read(tmp_path, 7, config)
    for name, field in whole._asdict().items():
        assert np.array_equal(field, getattr(batch, name)), name
    assert [sample["id"] for sample in samples] == [each.example.record_id for each in expected.packed]
    assert [sample["row"] for sample in samples] == [each.row for each in expected.packed]
    recorded = anomaly_dump.numbers(facts)
    assert math.isnan(recorded["loss"]) and recorded["grad_norm"] == math.inf
    (tmp_path / "anomalies/step_notes").mkdir()  # somebody else's
    with pytest.raises(UserError, match="steps that were written: 7"):
        anomaly_dump.read(tmp_path, 8, config)
    for name in ("part_0.npz", "part_1.json", "anomaly.json"):
        file = tmp_path / "anomalies/step_7" / name
        content = file.read_bytes()
        for damaged in (content[: len(content) // 2], b"{}", b""):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=r"step_7 are damaged|is not valid JSON"):
                anomaly_dump.read(tmp_path, 7, config)
        file.write_bytes(content)
    (tmp_path / "anomalies/step_7/part_1.json").unlink()
    with pytest.raises(UserError, match="lacks the part of process 1"):
        anomaly_dump.read(tmp_path, 7, config)


def test_the_first_operation_that_is_not_finite_is_named() -> None:
    def function(x: jax.Array) -> jax.Array:
        with jax.named_scope("first"):
            masked = jnp.where(x > 1, x, -jnp.inf)  # no fault
            kept = jnp.exp(masked)
        with jax.named_scope("second"):
            inner = jax.checkpoint(lambda y: jnp.log(y - 5))(kept)
        return jax.jit(jnp.sum)(inner)

    assert first_nonfinite(lambda x: jnp.sum(jnp.exp(-x)), jnp.ones(3)) == ""
    assert "second" in first_nonfinite(function, jnp.full(3, 1.5)) and "log" in first_nonfinite(
        function, jnp.full(3, 1.5)
    )
    layers = jnp.array([1.0, 1.0, 200.0, 1.0])

    def looped(x: jax.Array) -> object:
        return jax.lax.scan(lambda carry, w: (jnp.exp(carry * w), carry), x, layers)

    assert first_nonfinite(looped, jnp.ones(())) == "[2]: exp -> float32[]"
    tree = {"vit": {"blocks": {"w": jnp.ones((3, 2)).at[1, 0].set(jnp.nan)}}, "decoder": {"b": jnp.ones(2)}}
    assert nonfinite_leaves(tree) == ["vit/blocks/w: 1 numbers, first in layer 1"]


def test_reasons() -> None:
    assert reason({"loss": math.nan, "grad_norm": 1.0}) == "the loss is nan"
    assert reason({"loss": 1.0, "grad_norm": math.inf}) == "the gradient norm is inf"
    assert reason({"loss": 9.0, "grad_norm": 2.0}) == "a spike: loss 9, gradient norm 2"


@pytest.mark.slow
def test_a_run_with_spikes_that_is_continued_equals_an_unbroken_one(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_run.make_config(tiny_data, train__log_every=3)
    rule = AnomaliesConfig(gradient_factor=1.01, loss_factor=1.3, mean_steps=4, warmup_steps=2, dumps=1)
    config = dataclasses.replace(config, anomalies=rule)
    assert train(config, tmp_path / "whole") == 24
    skipped = sum(line["skipped"] for line in lines(tmp_path / "whole"))
    assert 1 <= skipped <= 20
    assert len(list((tmp_path / "whole/anomalies").iterdir())) == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (16, 24):
        shutil.rmtree(tmp_path / "parts/checkpoints" / str(step))
    assert train(config, tmp_path / "parts") == 24
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 24)
