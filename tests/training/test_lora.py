"""Low-rank adapters in training: what they compute, what is trained and saved, dropout, and continuing to the bit."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.checkpoint.manager import params_folder, stored_leaves
from qwenvl_jax.checkpoint.restore import deferred_params, load_params
from qwenvl_jax.config import LORA_TARGETS, Config, LoraConfig
from qwenvl_jax.models import lora, qwen_vl
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, flatten, merge, parse_path, split, unflatten
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training import loop
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.replay import run as replayed
from qwenvl_jax.training.state import State, abstract_state
from qwenvl_jax.training.step import make_train_step, microbatch_loss
from tests.checkpoint.saved_run import assert_same_run
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]
EVERYWHERE = LoraConfig(rank=4, alpha=6.0, dropout=0.0, targets=tuple(LORA_TARGETS))
FEW: dict[str, Any] = {
    "data__images_per_row": 2.0,
    "data__sequence_length": 24,
    "train__trainable": ("vit",),
    "compute__unroll_layers": False,  # compiles faster
}


def configure(folder: Path = tiny_run.NO_DATA, adapters: LoraConfig = EVERYWHERE, **changes: Any) -> Config:
    trainable = ("lora", *changes.pop("also", ()))
    config = tiny_run.make_config(folder, **FEW, **changes)
    return dataclasses.replace(config, lora=adapters, train=dataclasses.replace(config.train, trainable=trainable))


def noisy(config: Config) -> Params:
    """Parameters with adapters that are not zero."""
    params = lora.init_params(config.model, config.lora, jax.random.key(3))
    rng = np.random.default_rng(0)
    return unflatten(
        {
            path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if path[-1] == LORA_B else leaf
            for path, leaf in flatten(params).items()
        }
    )


def merged(params: Params) -> Params:
    """By einsum and one layer after the other, unlike `lora.merged_kernel`."""
    leaves = flatten(params)
    for target, inputs in LORA_TARGETS.items():
        path = tuple(target.split("/"))
        kernel, a, b, scale = (np.asarray(leaves.pop((*path, name))) for name in ("kernel", LORA_A, LORA_B, LORA_SCALE))
        if "blocks" in path:
            update = np.stack([np.tensordot(a[k], b[k], axes=1) * scale[k] for k in range(len(a))])
        else:
            update = np.tensordot(a, b, axes=1) * scale
        assert a.ndim - ("blocks" in path) == inputs + 1
        leaves[(*path, "kernel")] = kernel + update
    return unflatten(leaves)


@functools.partial(jax.jit, static_argnums=1)
def hidden(params: Params, config: Config) -> jax.Array:
    batch = tiny_run.random_batch(config)
    return qwen_vl.forward(
        params,
        config.model,
        config.compute,
        tokens_BL=jnp.asarray(batch.tokens[0]),
        segment_ids_BL=jnp.asarray(batch.segment_ids[0]),
        positions_BL=jnp.asarray(batch.positions[0]),
        image_slot_BL=jnp.asarray(batch.image_slot[0]),
        images_IHWC=jnp.asarray(batch.images[0]),
    )


def test_fresh_adapters_change_nothing_to_the_bit() -> None:
    config = configure()
    params = lora.init_params(config.model, config.lora, jax.random.key(3))
    np.testing.assert_array_equal(
        hidden(params, config), hidden(qwen_vl.init_params(config.model, jax.random.key(3)), config)
    )


def test_adapters_beside_kernels_compute_what_merged_kernels_do() -> None:
    config = configure()
    params = noisy(config)
    whole = merged(params)
    np.testing.assert_allclose(hidden(params, config), hidden(whole, config), rtol=1e-4, atol=1e-5)
    base = {path: leaf for path, leaf in flatten(params).items() if not lora.is_adapter(path)}
    assert np.abs(hidden(params, config) - hidden(unflatten(base), config)).max() > 1e-2
    for target in LORA_TARGETS:
        path = parse_path(target)
        parts = [np.asarray(flatten(params)[(*path, name)]) for name in ("kernel", LORA_A, LORA_B, LORA_SCALE)]
        np.testing.assert_allclose(lora.merged_kernel(*parts), flatten(whole)[(*path, "kernel")], atol=1e-6)


def step(config: Config, batches: list[Any], params: Params) -> tuple[State, list[dict[str, Any]]]:
    mesh = make_mesh(config.mesh)
    trainable, frozen = split(jax.tree.map(jnp.copy, params), config.train.trainable)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    state = State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))
    take_step = make_train_step(config, mesh, abstract_state(config, mesh))
    metrics = []
    for batch in batches:
        state, of_step = take_step(state, put_batch(batch, config.data, mesh))
        metrics.append(jax.device_get(of_step))
    return state, metrics


def test_only_adapters_have_gradients_and_moments_and_they_are_those_of_the_merged_model() -> None:
    config = configure()
    params = noisy(config)
    batch = tiny_run.random_batch(config)
    mesh = make_mesh(config.mesh)
    micro = jax.tree.map(lambda field: jnp.asarray(field[0]), batch)
    trainable, frozen = split(params, config.train.trainable)
    assert {path[-1] for path in flatten(trainable)} == {LORA_A, LORA_B}
    assert all(path[-1] not in (LORA_A, LORA_B) for path in flatten(frozen))

    def loss(trainable: Params) -> jax.Array:
        return microbatch_loss(trainable, frozen, micro, jnp.ones(()), config, mesh)[0]

    def loss_of_merged(trainable: Params) -> jax.Array:
        leaves = flatten(merge(trainable, frozen))
        for path in [path for path in leaves if path[-1] == LORA_A]:
            parts = [leaves.pop((*path[:-1], name)) for name in ("kernel", LORA_A, LORA_B, LORA_SCALE)]
            leaves[(*path[:-1], "kernel")] = lora.merged_kernel(*parts)
        return microbatch_loss({}, unflatten(leaves), micro, jnp.ones(()), config, mesh)[0]

    with jax.set_mesh(mesh):
        ours, theirs = jax.jit(jax.grad(loss))(trainable), jax.jit(jax.grad(loss_of_merged))(trainable)
    for path, leaf in flatten(ours).items():
        np.testing.assert_allclose(leaf, flatten(theirs)[path], rtol=2e-3, atol=2e-4, err_msg="/".join(path))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_state(config).opt_state)) == 2 * sizes + 1


@pytest.mark.slow
def test_dropout_depends_on_seed_step_and_contents_alone() -> None:
    config = configure(adapters=LoraConfig(4, 6.0, 0.4, ("decoder/blocks/mlp/up", "vit/blocks/mlp/up")))
    params = noisy(config)
    trainable, frozen = split(params, config.train.trainable)
    batch = tiny_run.random_batch(config)
    micro = jax.tree.map(lambda field: jnp.asarray(field[0]), batch)
    mesh = make_mesh(config.mesh)

    @functools.partial(jax.jit, static_argnames="seed")
    def loss_of(number: int | None, micro: Any, seed: int = 0) -> jax.Array:
        seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        return microbatch_loss(trainable, frozen, micro, jnp.ones(()), seeded, mesh, step=number)[0]

    with jax.set_mesh(mesh):
        losses = [loss_of(0, micro), loss_of(1, micro), loss_of(0, micro, seed=1), loss_of(None, micro)]
        assert loss_of(0, micro) == losses[0]
    assert len({float(loss) for loss in losses}) == 4

    # Neither the place of a row in the batch nor accumulation changes what is left out.
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, accumulation=1))
    _, metrics = step(config, [batch], params)
    _, at_once = step(whole, [tiny_run.regroup(batch, config.model.resampler.queries)], params)
    np.testing.assert_allclose(metrics[0]["loss"], at_once[0]["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics[0]["grad_norm"], at_once[0]["grad_norm"], rtol=1e-4)
    samples = [{"microbatch": 0, "row": 0, "tokens": (0, 1)}]
    assert replayed(config, mesh, params, batch, samples, 0).loss == pytest.approx(float(metrics[0]["loss"]), rel=1e-6)


def test_dropout_leaves_out_the_share_and_keeps_the_mean() -> None:
    from qwenvl_jax.models.layers import dropout

    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 8))
    ones, keep = jnp.ones((8, 100, 81)), jnp.float32(0.75)
    values = np.asarray(dropout(ones, keys, keep))
    assert set(np.unique(values)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    kept = values > 0
    spread = np.sqrt(0.75 * 0.25 / kept.size)
    assert kept.mean() == pytest.approx(0.75, abs=4 * spread)
    # Neighbours, lines and rows know nothing of each other.
    around = (kept - 0.75) / (0.75 * 0.25)
    for axis in range(3):
        product = around[(slice(None),) * axis + (slice(1, None),)] * around[(slice(None),) * axis + (slice(-1),)]
        assert product.mean() * 0.75 * 0.25 == pytest.approx(0, abs=4 / np.sqrt(product.size))
    gradient = jax.grad(lambda x: (dropout(x, keys, keep) * 3).sum())(ones)
    np.testing.assert_allclose(gradient, 3 * values, rtol=1e-6)
    assert np.asarray(dropout(ones, keys, jnp.float32(1.0))).all()


def train(config: Config, workdir: Path) -> dict[tuple[str, ...], Any]:
    loop.train(config, workdir)
    return flatten(load_params(workdir, adapters_apart=True)[0])


@pytest.mark.slow
def test_a_run_saves_its_adapters_alone_continues_to_the_bit_and_is_read_as_merged(
    tiny_data: Path, tmp_path: Path
) -> None:
    adapters = LoraConfig(rank=4, alpha=6.0, dropout=0.3)
    changes: dict[str, Any] = {"train__steps": 6, "train__checkpoint_every": 3, "train__log_every": 3}
    config = configure(tiny_data, adapters, also=("vocabulary",), compute__frozen_dtype="bfloat16", **changes)
    unbroken = train(config, tmp_path / "unbroken")
    trained = {path[-1] for path in stored_leaves(params_folder(tmp_path / "unbroken", 6))}
    assert trained == {LORA_A, LORA_B, "embedding", "lm_head"}
    frozen = stored_leaves(params_folder(tmp_path / "unbroken", None))
    assert not {path[-1] for path in frozen} & trained

    # The run goes back to step 3 and on again.
    loop.train(config, tmp_path / "unbroken", from_step=3)
    again = flatten(load_params(tmp_path / "unbroken", adapters_apart=True)[0])
    assert unbroken.keys() == again.keys()
    for path, leaf in unbroken.items():
        np.testing.assert_array_equal(leaf, again[path], err_msg="/".join(path))
    assert any(np.any(leaf) for path, leaf in unbroken.items() if path[-1] == LORA_B)

    # Every reader but the run itself sees the model that the adapters make.
    whole = flatten(load_params(tmp_path / "unbroken")[0])
    lazily = flatten(deferred_params(tmp_path / "unbroken")[0])
    assert whole.keys() == lazily.keys() == flatten(qwen_vl.abstract_params(config.model)).keys()
    for path, leaf in whole.items():
        value = np.asarray(lazily[path].load())
        assert value.dtype == leaf.dtype == lazily[path].dtype
        np.testing.assert_allclose(leaf.astype(np.float32), value.astype(np.float32), rtol=1e-6, atol=1e-7)
    kernel = ("decoder", "blocks", "attn", "qkv", "kernel")
    parts = [np.asarray(unbroken[(*kernel[:-1], name)]) for name in ("kernel", LORA_A, LORA_B, LORA_SCALE)]
    np.testing.assert_allclose(whole[kernel], lora.merged_kernel(*parts), atol=1e-6)

    # A run with adapters of its own starts from the merged weights.
    start = {tower: str(tmp_path / "unbroken") for tower in ("vit", "resampler", "decoder")}
    following = configure(tiny_data, adapters, init__stage="multitask", **{f"init__{k}": v for k, v in start.items()})
    following = dataclasses.replace(following, train=dataclasses.replace(following.train, steps=5, stage="sft"))
    new = train(following, tmp_path / "following")
    np.testing.assert_allclose(new[kernel], whole[kernel], atol=1e-6)
    assert not np.array_equal(new[(*kernel[:-1], LORA_A)], unbroken[(*kernel[:-1], LORA_A)])


def killed_run(data: Path) -> Config:
    """The run of the test below."""
    adapters = LoraConfig(rank=4, alpha=6.0, dropout=0.3)
    changes: dict[str, Any] = {"train__steps": 40, "train__checkpoint_every": 4, "train__log_every": 1}
    return configure(data, adapters, also=("vocabulary",), compute__frozen_dtype="bfloat16", **changes)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_begins_and_while_it_saves_ends_as_an_unbroken_one(
    tiny_data: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "broken"
    code = (
        "import pathlib, sys; from qwenvl_jax.training import loop; from tests.training.test_lora import killed_run; "
        "loop.train(killed_run(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    )
    for there in ("frozen*", "checkpoints/4*", "checkpoints/12*"):
        running = subprocess.Popen([sys.executable, "-c", code, str(tiny_data), str(workdir)], cwd=ROOT)
        try:
            while not any(workdir.glob(there)):
                assert running.poll() is None, "the run ended before it could be killed"
                time.sleep(0.002)
        finally:
            running.kill()
            running.wait()
    broken, unbroken = (train(killed_run(tiny_data), folder) for folder in (workdir, tmp_path / "unbroken"))
    assert_same_run(tmp_path / "unbroken", workdir, 40)
    assert broken.keys() == unbroken.keys()
    for path, leaf in unbroken.items():
        np.testing.assert_array_equal(leaf, broken[path], err_msg="/".join(path))


@pytest.mark.parametrize(
    ("adapters", "trainable", "words"),
    [
        (LoraConfig(), ("lora",), "config.lora.rank is 0"),
        (LoraConfig(rank=4), ("decoder",), "lacks 'lora'"),
        (LoraConfig(rank=4), ("lora", "decoder"), "trains whole"),
        (LoraConfig(rank=4, targets=()), ("lora",), "targets is empty"),
        (LoraConfig(rank=4, targets=("c_attn",)), ("lora",), "not one of"),
        (LoraConfig(rank=4, dropout=1.0), ("lora",), "less than 1"),
        (LoraConfig(rank=4, alpha=0.0), ("lora",), "at least 1e-30"),
        (LoraConfig(rank=4, alpha=1e-320), ("lora",), "at least 1e-30"),  # 0 in float32
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    adapters: LoraConfig, trainable: tuple[str, ...], words: str
) -> None:
    from qwenvl_jax.config import validate

    config = configure()
    config = dataclasses.replace(config, lora=adapters, train=dataclasses.replace(config.train, trainable=trainable))
    with pytest.raises(UserError, match=words):
        validate(config)
