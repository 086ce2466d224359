"""Quantised kernels against the papers' formulas and PyTorch, in a layer, in a step, and in the files of a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from configs.finetune import qlora
from qwenvl_jax.checkpoint.manager import params_folder, stored_leaves
from qwenvl_jax.checkpoint.restore import deferred_params, load_params
from qwenvl_jax.config import LORA_TARGETS, QUANTISED_TARGETS, Config, LoraConfig, load_config, validate
from qwenvl_jax.models import layers, lora, quantised
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, flatten, merge, parse_path, split, unflatten
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training import loop
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import microbatch_loss
from tests.support import tiny_run

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ("int8", "nf4")
# The axes of the kernels of the full model in small, and how many of them are inputs.
SHAPES = (((24, 3, 4, 128), 1), ((4, 32, 192), 2), ((40, 11 * 64), 1), ((16, 40), 1))


def random_kernel(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal values with a few large ones and a channel of zeros."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype(np.float32) * 0.02
    kernel.flat[:: kernel.size // 5] *= 20
    kernel[..., 0] = 0
    return kernel


def test_the_values_of_nf4_are_quantiles_of_the_normal_distribution() -> None:
    """Appendix E: eight quantiles below zero and nine above it, which share the zero, divided by the largest."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    np.testing.assert_allclose(quantised.NF4_VALUES, values / values.max(), atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bits_per_weight_of_the_full_model_are_those_of_the_docs(scheme: str) -> None:
    state = abstract_state(load_config(qlora.get_config(kernels=scheme)))
    stored = quantised.kernels(state.frozen).values()
    bits = 8 * sum(leaf.size * leaf.dtype.itemsize for leaves in stored for leaf in leaves.values())
    weights = sum(math.prod(quantised.shape_of(leaves)) for leaves in stored)
    rows = (ROOT / "docs/finetuning.md").read_text().splitlines()
    (row,) = (row for row in rows if row.startswith(f"| `{scheme}` |"))
    assert row.endswith(f"| {bits / weights:.2f} |")


@pytest.mark.parametrize(("shape", "inputs"), SHAPES)
def test_nf4_is_that_of_torch(shape: tuple[int, ...], inputs: int) -> None:
    """The nearest value by comparing with all of them, as a loop over blocks."""
    kernel = random_kernel(shape)
    leaves = {name: np.asarray(leaf) for name, leaf in quantised.quantise(jnp.asarray(kernel), inputs, "nf4").items()}
    size = 64 if shape[-1] % 64 == 0 else 8
    assert leaves[quantised.ABSMAX].shape == (*shape[:-1], shape[-1] // size)
    blocks = torch.from_numpy(kernel).reshape(-1, size)
    absmax = blocks.abs().amax(1)
    values = torch.from_numpy(quantised.NF4_VALUES)
    unit = blocks / torch.where(absmax > 0, absmax, 1.0)[:, None]
    codes = (unit[..., None] - values).abs().argmin(-1)
    ours = np.stack([leaves[quantised.NF4] >> 4, leaves[quantised.NF4] & 15], -1).reshape(blocks.shape)
    np.testing.assert_array_equal(ours, codes)

    # The second quantisation: 8 bits of the distance from the mean, over everything of one input.
    of_input = absmax.reshape(*shape[:inputs], -1)
    mean = of_input.mean(-1, keepdim=True)
    scale = (of_input - mean).abs().amax(-1, keepdim=True) / 127
    expected = torch.round((of_input - mean) / scale) * scale + mean
    whole = values[codes] * expected.reshape(-1, 1)
    np.testing.assert_allclose(quantised.dequantise(leaves).reshape(whole.shape), whole, atol=1e-6)
    assert (np.abs(expected - of_input) <= scale / 2 + 1e-7).all()


@pytest.mark.parametrize(("shape", "inputs"), SHAPES)
def test_int8_is_that_of_torch(shape: tuple[int, ...], inputs: int) -> None:
    kernel = random_kernel(shape)
    leaves = {name: np.asarray(leaf) for name, leaf in quantised.quantise(jnp.asarray(kernel), inputs, "int8").items()}
    channels = torch.from_numpy(kernel).flatten(0, inputs - 1)
    scale = channels.abs().amax(0) / 127
    expected = torch.fake_quantize_per_channel_affine(
        channels.flatten(1), scale.flatten().clamp(min=1e-12), torch.zeros(scale.numel()), 1, -127, 127
    )
    np.testing.assert_allclose(quantised.dequantise(leaves).reshape(expected.shape), expected, atol=1e-7)
    assert np.abs(quantised.dequantise(leaves) - kernel).max() <= float(scale.max()) / 2 + 1e-7


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numpy_and_jax_read_the_same_kernel_of_all_layers(scheme: str) -> None:
    kernels = np.stack([random_kernel((16, 128), seed) for seed in range(3)])
    path = ("decoder", "blocks", "mlp", "up", "kernel")
    shapes = quantised.abstract(unflatten({path: jax.ShapeDtypeStruct(kernels.shape, jnp.bfloat16)}), scheme)
    stored = quantised.quantise_like(path, jnp.asarray(kernels), quantised.kernels(shapes)[path])
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in stored.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in flatten(shapes).items()
    }
    leaves = {path[-1]: leaf for path, leaf in stored.items()}
    whole = quantised.dequantise({name: np.asarray(leaf) for name, leaf in leaves.items()})
    assert isinstance(whole, np.ndarray) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, jax.jit(quantised.dequantise)(leaves), rtol=1e-6)  # a CPU may fuse the sum
    for layer, kernel in enumerate(kernels):
        alone = quantised.dequantise(quantised.quantise(jnp.asarray(kernel), 1, scheme))
        np.testing.assert_allclose(whole[layer], alone, atol=1e-7)
    assert flatten(quantised.plain(shapes)) == {path: jax.ShapeDtypeStruct(kernels.shape, jnp.float32)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_keeps_the_codes_for_its_gradient_not_the_kernel(scheme: str) -> None:
    layer = layers.Projection((64,), (3, 2, 64), jnp.float32, jax.nn.initializers.normal(0.1), unstack=True)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 64)), jnp.float32)
    params = flatten(layer.init(jax.random.key(0), x)["params"])
    stored = quantised.quantise(params.pop(("kernel",)), 1, scheme)
    whole = {("kernel",): quantised.dequantise(stored)} | params
    few = {(name,): leaf for name, leaf in stored.items()} | params

    def loss(x: jax.Array, leaves: dict[tuple[str, ...], jax.Array]) -> jax.Array:
        parts: Any = layer.apply({"params": unflatten(leaves)}, x)
        return jnp.sum(jnp.square(jnp.stack(parts)))

    for one, other in zip(*(jax.value_and_grad(loss)(x, leaves) for leaves in (few, whole)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)

    def sizes_of_residuals(leaves: dict[tuple[str, ...], jax.Array]) -> set[int]:
        _, backward = jax.vjp(lambda x: loss(x, leaves), x)
        return {leaf.nbytes for leaf in jax.tree.leaves(backward)}

    size = 4 * 64 * 3 * 2 * 64  # of the kernel or one of its three parts in float32
    assert {size, size // 3} & sizes_of_residuals(whole)
    assert not {size, size // 3} & sizes_of_residuals(few)


def configure(folder: Path = tiny_run.NO_DATA, scheme: str = "nf4", **changes: Any) -> Config:
    config = tiny_run.make_config(
        folder,
        data__images_per_row=2.0,
        data__sequence_length=24,
        train__trainable=("vit",),
        compute__unroll_layers=False,
        compute__frozen_kernels=scheme,
        **changes,
    )
    adapters = LoraConfig(rank=4, alpha=6.0, dropout=0.0)
    return dataclasses.replace(config, lora=adapters, train=dataclasses.replace(config.train, trainable=("lora",)))


def quantise_tree(params: Params, scheme: str) -> Params:
    leaves = flatten(params)
    for target in QUANTISED_TARGETS:
        path = parse_path(target)
        kernel = leaves.pop((*path, "kernel"))
        made = [quantised.quantise(layer, LORA_TARGETS[target], scheme) for layer in kernel]
        leaves |= {(*path, name): jnp.stack([one[name] for one in made]) for name in made[0]}
    return unflatten(leaves)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_of_adapters_are_those_beside_the_kernels_that_the_codes_stand_for(scheme: str) -> None:
    config = configure(scheme=scheme)
    params = flatten(lora.init_params(config.model, config.lora, jax.random.key(3)))
    rng = np.random.default_rng(0)
    for path, leaf in params.items():
        if path[-1] == LORA_B:
            params[path] = leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    few = quantise_tree(unflatten(params), scheme)
    whole = flatten(few)
    for kernel, stored in quantised.kernels(few).items():
        for name in stored:
            del whole[(*kernel[:-1], name)]
        whole[kernel] = quantised.dequantise(stored)
    micro = jax.tree.map(lambda field: jnp.asarray(field[0]), tiny_run.random_batch(config))
    mesh = make_mesh(config.mesh)

    def loss(trainable: Params, frozen: Params) -> jax.Array:
        return microbatch_loss(trainable, frozen, micro, jnp.ones(()), config, mesh)[0]

    with jax.set_mesh(mesh):
        gradients = [
            jax.jit(jax.value_and_grad(loss))(*split(tree, config.train.trainable)) for tree in (few, unflatten(whole))
        ]
    assert gradients[0][0] == pytest.approx(float(gradients[1][0]), rel=1e-5)
    for path, leaf in flatten(gradients[0][1]).items():
        np.testing.assert_allclose(leaf, flatten(gradients[1][1])[path], rtol=1e-3, atol=1e-5, err_msg="/".join(path))


@pytest.mark.slow
def test_a_run_stores_the_codes_once_continues_to_the_bit_and_is_read_as_merged(
    tiny_data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"train__steps": 6, "train__checkpoint_every": 3, "train__log_every": 3}
    start = tiny_run.make_config(tiny_data, train__steps=2, train__checkpoint_every=2, optimizer__warmup_steps=1)
    loop.train(start, tmp_path / "start")
    init = {f"init__{tower}": str(tmp_path / "start") for tower in ("vit", "resampler", "decoder")}
    config = configure(tiny_data, **settings, **init, init__stage=start.train.stage)
    run = tmp_path / "run"
    loop.train(config, run)
    before = flatten(load_params(run, adapters_apart=True)[0])
    assert {path[-1] for path in stored_leaves(params_folder(run, 6))} == {LORA_A, LORA_B}
    frozen = stored_leaves(params_folder(run, None))
    targets = [parse_path(target) for target in QUANTISED_TARGETS]
    assert {path[:-1] for path in frozen if path[-1] == quantised.NF4} == set(targets)
    assert not {path for path in frozen if path[:2] == ("decoder", "blocks") and path[-1] == "kernel"}

    loop.train(config, run, from_step=3)
    for path, leaf in flatten(load_params(run, adapters_apart=True)[0]).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg="/".join(path))

    base = flatten(load_params(tmp_path / "start")[0])
    whole = flatten(load_params(run)[0])
    lazily = flatten(deferred_params(run)[0])
    assert whole.keys() == lazily.keys() == base.keys()
    for path, leaf in whole.items():
        np.testing.assert_allclose(leaf, lazily[path].load(), rtol=1e-6, atol=1e-7, err_msg="/".join(path))
    for target in targets:
        stored = {name: np.asarray(before[(*target, name)]) for name in quantised.NAMES if (*target, name) in before}
        expected = quantised.dequantise(stored)
        assert 0 < np.abs(expected - base[(*target, "kernel")]).mean() < 0.1 * np.abs(expected).mean()
        if (*target, LORA_A) in before:
            parts = [np.asarray(before[(*target, name)]) for name in (LORA_A, LORA_B, LORA_SCALE)]
            expected = lora.merged_kernel(expected, *parts)
        np.testing.assert_allclose(whole[(*target, "kernel")], expected, atol=1e-6)


def test_the_full_model_takes_a_quarter_of_the_memory_and_names_its_parameters_rightly() -> None:
    from configs.finetune import qlora
    from qwenvl_jax.config import load_config

    sizes = {}
    for scheme in ("plain", *SCHEMES):
        config = load_config(qlora.get_config(kernels="nf4" if scheme == "plain" else scheme))
        config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, frozen_kernels=scheme))
        state = abstract_state(config)
        of_blocks = {path: leaf for path, leaf in flatten(state.frozen).items() if path[:2] == ("decoder", "blocks")}
        names = ("kernel", *quantised.NAMES)
        sizes[scheme] = sum(leaf.size * leaf.dtype.itemsize for path, leaf in of_blocks.items() if path[-1] in names)
        shapes = {
            path: leaf.shape for path, leaf in flatten(merge(state.trainable, quantised.plain(state.frozen))).items()
        }
        expected = flatten(lora.abstract_params(config.model, config.lora))
        assert shapes == {path: leaf.shape for path, leaf in expected.items()}
    parameters = sizes["plain"] / 2
    assert sizes["int8"] / parameters == pytest.approx(1.0, abs=0.002)  # bytes per parameter
    assert 8 * sizes["nf4"] / parameters == pytest.approx(4.127, abs=0.03)  # bits: 4 + 8 / 64 + those of the inputs


def test_a_trained_decoder_cannot_be_quantised() -> None:
    config = configure()
    train = dataclasses.replace(config.train, trainable=("decoder",))
    with pytest.raises(UserError, match=r"frozen_kernels is 'nf4', but config\.train\.trainable has the decoder"):
        validate(dataclasses.replace(config, lora=LoraConfig(), train=train))
