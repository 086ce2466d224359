"""The property that any mesh computes what one device computes, for a process of 24 virtual CPU devices.

Usage: any_mesh.py EXAMPLES SEED. Hypothesis draws EXAMPLES cases from SEED; each is a mesh with a batch cut for it. The
training step and the forward passes of evaluation on the mesh must equal those of one device, which sees all rows as
one microbatch of one image group. The last line of the output is JSON: the cases and the largest differences.

Every picture of a batch is another one, and rows use any picture of their group, so that a wrong picture shows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax import config as schema
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten, split
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import AXES, BATCH_AXES, make_mesh
from qwenvl_jax.sharding.rules import param_shardings
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.state import State, abstract_state, shardings_of
from qwenvl_jax.training.step import make_train_step

DEVICES = 24
ROWS = 48  # of all microbatches at most; the one device always takes so many, the last of them empty
IMAGES = 2 * ROWS
LENGTH, QUERIES = 16, 4  # two samples of eight tokens in a row, each with or without an image
ALL = ("vit", "vit_head", "resampler", "decoder")
TRAINABLE = (ALL, ("vit", "vit_head", "resampler"), ("resampler", "decoder"))

# Widths of 24 and 6 heads divide by everything up to 24 devices but 5, 7, 9, 10 and so on, which `data` may take.
MODEL = schema.ModelConfig(
    name="tiny",
    vit=schema.VitConfig(24, 2, 6, 48, patch_size=2, position_grid=2, layer_norm_eps=1e-6, window=2, global_every=2),
    resampler=schema.ResamplerConfig(query_grid=2, heads=6, layer_norm_eps=1e-6),
    decoder=schema.DecoderConfig(96, 24, 2, 6, 48, 10000.0, 1e-6, 4, logn_attention=True, dynamic_ntk=True),
)
SOURCES = tuple(schema.SourceConfig(name, "caption", "unused", 1.0) for name in ("first", "second", "third"))
COMPUTE = schema.ComputeConfig("float32", "float32", "xla", "none", "none", unroll_layers=False, loss_chunk=20)


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh, a batch cut for it, and what is trained."""

    slices: int
    data: int
    fsdp: int
    tensor: int
    accumulation: int
    rows: int  # of a microbatch
    groups: int
    streams: int
    images_per_row: float
    trainable: tuple[str, ...]
    eval_rows: int  # 0: training alone
    seed: int


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@st.composite
def cases(draw: Any) -> Case:
    """Everything that the checks accept on up to 24 devices, more often many devices than few."""
    slices = draw(st.sampled_from([1, 1, 2, 3]))
    tensor = draw(st.sampled_from([size for size in (1, 1, 2, 3, 6) if size * slices <= DEVICES]))
    left = DEVICES // (slices * tensor)
    split_over_both = divisors(MODEL.decoder.mlp_dim // tensor)  # the hidden width lies over tensor x fsdp
    fsdp = draw(st.sampled_from([size for size in divisors(24) if size <= left and size in split_over_both][::-1]))
    data = draw(st.integers(1, left // fsdp).map(lambda size: left // fsdp + 1 - size))
    shards = slices * data * fsdp
    rows = shards * draw(st.integers(1, ROWS // shards))
    accumulation = draw(st.integers(1, min(3, ROWS // rows)))
    groups = draw(st.sampled_from(divisors(rows)))
    streams = draw(st.sampled_from(divisors(groups)))
    images_per_row = draw(st.sampled_from([0.5, 1.0, 1.25, 2.0]))
    trainable = draw(st.sampled_from(TRAINABLE))
    eval_rows = draw(st.one_of(st.just(0), st.integers(1, ROWS)))  # compiled for every other case
    number = draw(st.integers(0, 2**32 - 1))
    return Case(
        slices, data, fsdp, tensor, accumulation, rows, groups, streams, images_per_row, trainable, eval_rows, number
    )


def config_of(case: Case) -> schema.Config:
    return schema.validate(
        schema.Config(
            model=MODEL,
            tokenizer=schema.TokenizerConfig("sentencepiece", "unused"),
            data=schema.DataConfig(
                mixture=SOURCES,
                image_size=8,
                sequence_length=LENGTH,
                rows_per_step=case.rows * case.accumulation,
                accumulation=case.accumulation,
                images_per_row=case.images_per_row,
                packing_window=1,
                seed=0,
                image_groups=case.groups,
                streams=case.streams,
            ),
            optimizer=schema.OptimizerConfig(1e-2, 1e-3, 0, 0.9, 0.98, 1e-6, 0.05, 1.0, 0.9),
            init=schema.InitConfig("", "", "", ""),
            train=schema.TrainConfig("multitask", case.trainable, 4, 0, 1, 1, 1),
            mesh=schema.MeshConfig(case.data, case.fsdp, case.tensor, case.slices, 0),
            compute=COMPUTE,
        )
    )


def batch_of(case: Case, data: schema.DataConfig) -> Batch:
    """Random rows. A row's samples use any images of its group; images that none uses are there as well."""
    rng = np.random.default_rng(case.seed)
    shape = (case.accumulation, case.rows, LENGTH)
    tokens, targets = (rng.integers(0, MODEL.decoder.vocab_size, shape).astype(np.int32) for _ in range(2))
    segments = np.broadcast_to(1 + np.arange(LENGTH) // 8, shape).astype(np.int32).copy()
    segments[rng.random(shape[:2]) < 0.3, 12:] = 0
    positions = np.broadcast_to(np.arange(LENGTH) % 8, shape).astype(np.int32)
    slots = np.full(shape, -1, np.int32)
    for start in (1, 9):
        with_image = rng.random(shape[:2]) < 0.7
        image = rng.integers(0, data.group_images, shape[:2])
        features = image[..., None] * QUERIES + np.arange(QUERIES)
        slots[..., start : start + QUERIES] = np.where(with_image[..., None], features, -1)
    slots[segments == 0] = -1
    mask = (rng.random(shape) < 0.6) & (segments > 0) & (slots < 0)
    mask[:, : case.rows // 3] &= rng.random(case.rows // 3)[:, None] < 0.5  # some devices have less to do
    pixels = (case.accumulation, data.image_budget, data.image_size, data.image_size, 3)
    images = rng.integers(0, 256, pixels).astype(np.uint8)
    sources = rng.integers(0, len(data.mixture), (*shape[:2], 2)).repeat(8, axis=-1)
    sources = np.where(segments > 0, sources, 0).astype(np.int32)
    return Batch(tokens, targets, mask.astype(np.float32), segments, positions, slots, sources, images)


def as_one_group(batch: Batch, data: schema.DataConfig) -> Batch:
    """The same rows as one microbatch of one image group, filled up with empty rows and images to `ROWS`, `IMAGES`."""
    microbatches, rows, _ = batch.tokens.shape
    group = np.arange(microbatches)[:, None] * data.groups + np.arange(rows) // data.group_rows
    first = (group * data.group_images * QUERIES)[..., None]
    slots = np.where(batch.image_slot >= 0, batch.image_slot + first, -1).astype(np.int32)

    def fill(name: str, field: np.ndarray) -> np.ndarray:
        joined = field.reshape(-1, *field.shape[2:])
        empty = (IMAGES if name == "images" else ROWS) - len(joined)
        value = -1 if name == "image_slot" else 0
        return np.pad(joined, [(0, empty), *[(0, 0)] * (joined.ndim - 1)], constant_values=value)[None]

    return Batch(*(fill(*field) for field in batch._replace(image_slot=slots)._asdict().items()))


def fresh_state(config: schema.Config, mesh: Mesh) -> State:
    """Parameters large enough for pictures to matter, laid out on the mesh."""
    abstract = abstract_state(config, mesh)
    trainable, frozen = split(parameters(), config.train.trainable)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    state = State(np.zeros((), np.int32), trainable, frozen, optimizer.init(trainable))
    return jax.device_put(state, shardings_of(abstract))


@functools.cache
def parameters() -> Any:
    params = qwen_vl.init_params(MODEL, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def answers_of_step(step_fn: Any, state: State, batch: Batch) -> dict[str, np.ndarray]:
    """Metrics, moments and parameters after a step."""
    state, metrics = step_fn(state, batch)
    moments = state.opt_state[1]
    trees = {"mu": moments.mu, "nu": moments.nu, "param": state.trainable}
    answers = {f"metric/{name}": np.asarray(value) for name, value in metrics.items()}
    for name, tree in trees.items():
        answers |= {f"{name}/{'/'.join(path)}": np.asarray(leaf) for path, leaf in flatten(tree).items()}
    return answers


@functools.cache
def reference_step(trainable: tuple[str, ...]) -> tuple[schema.Config, Mesh, Any]:
    config = config_of(Case(1, 1, 1, 1, 1, ROWS, 1, 1, 2.0, trainable, 1, 0))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return config, mesh, make_train_step(config, mesh, abstract_state(config, mesh))


def evaluate(params: Any, batch: Any) -> dict[str, jax.Array]:
    """Logits of whole rows, of a prefill padded on the left, and of two decoded tokens; batch without its axis A."""
    features_FD = qwen_vl.encode_images(params, MODEL, COMPUTE, batch.images)
    hidden_BLD = qwen_vl.forward(
        params,
        MODEL,
        COMPUTE,
        tokens_BL=batch.tokens,
        segment_ids_BL=batch.segment_ids,
        positions_BL=batch.positions,
        image_slot_BL=batch.image_slot,
        images_IHWC=batch.images,
        training=False,
    )
    rows = batch.tokens.shape[0]
    valid_BL = jnp.arange(LENGTH) >= (batch.targets[:, :1] % 8)
    position_BL = jnp.cumsum(valid_BL, axis=1, dtype=jnp.int32) - 1
    prompt_BLD = qwen_vl.embed(params, MODEL, COMPUTE, batch.tokens, batch.image_slot, features_FD)
    cache = qwen_vl.init_cache(MODEL, COMPUTE, rows, LENGTH + 2)
    prefill_BLD, cache = qwen_vl.prefill(params, MODEL, COMPUTE, prompt_BLD, position_BL, valid_BL, cache)
    alpha_B = qwen_vl.ntk_alpha(MODEL, jnp.sum(valid_BL, axis=1))
    seen_BT = jnp.pad(valid_BL, ((0, 0), (0, 2)), constant_values=True)
    answers = {"eval/forward": hidden_BLD, "eval/prefill": jnp.where(valid_BL[..., None], prefill_BLD, 0)}
    for index in range(2):
        hidden_BD, cache = qwen_vl.decode_step(
            params,
            MODEL,
            COMPUTE,
            batch.targets[:, index],
            position_BL[:, -1] + 1 + index,
            seen_BT,
            LENGTH + index,
            cache,
            alpha_B,
        )
        answers[f"eval/decode_{index}"] = qwen_vl.logits(params, MODEL, COMPUTE, hidden_BD)
    return answers


evaluate_on_one = jax.jit(evaluate)


def check_evaluation(case: Case, mesh: Mesh, batch: Batch, worst: dict[str, float]) -> None:
    """`eval_rows` rows, split over the mesh if they divide, and all images."""
    whole = Batch(*(field[0] for field in batch))
    expected = evaluate_on_one(parameters(), whole)
    few = Batch(*(field if name == "images" else field[: case.eval_rows] for name, field in whole._asdict().items()))
    shards = case.slices * case.data * case.fsdp

    def put(field: np.ndarray) -> Any:
        return jax.device_put(field, NamedSharding(mesh, P(BATCH_AXES if len(field) % shards == 0 else None)))

    with jax.set_mesh(mesh):
        params = jax.device_put(parameters(), param_shardings(parameters(), mesh))
        answers = jax.jit(evaluate)(params, Batch(*map(put, few)))
    expected = {name: value[: case.eval_rows] for name, value in expected.items()}
    compare({k: np.asarray(v) for k, v in answers.items()}, {k: np.asarray(v) for k, v in expected.items()}, worst)


def compare(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray], worst: dict[str, float]) -> None:
    """Differences relative to the largest number of each array, in float32 rounding.

    An array that is nothing but rounding (the bias of keys shifts all scores of a query alike) counts against a
    thousandth of the largest of its kind.
    """
    assert answers.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, value in expected.items():
        kind = name.split("/")[0]
        largest[kind] = max(largest.get(kind, 0.0), float(np.abs(value).max()))
    for name, value in expected.items():
        assert np.isfinite(value).all() and np.isfinite(answers[name]).all(), name
        kind = name.split("/")[0]
        if kind == "param":  # Adam divides by the root of nu: where gradients are rounding errors updates are noise
            mu, nu = (expected[name.replace("param", moment, 1)] for moment in ("mu", "nu"))
            clear = np.sqrt(nu) > 1e-3 * np.sqrt(nu).max()
            assert mu.any()
            difference = np.abs(answers[name] - value)[clear].max(initial=0) / 1e-2
            limit = 2e-2
        else:
            scale = np.abs(value).max() + (1e-3 * largest[kind] if kind in ("mu", "nu") else 1e-12)
            difference = np.abs(answers[name].astype(np.float64) - value).max() / scale
            limit = 2e-4
        worst[kind] = max(worst.get(kind, 0.0), float(difference))
        assert difference < limit, (name, difference)


def check(case: Case, worst: dict[str, float]) -> None:
    config = config_of(case)
    used = case.slices * case.data * case.fsdp * case.tensor
    mesh = make_mesh(config.mesh, jax.devices()[:used])
    assert tuple(mesh.shape[axis] for axis in AXES) == (case.slices * case.data, case.fsdp, case.tensor)
    batch = batch_of(case, config.data)
    joined = as_one_group(batch, config.data)
    one, one_mesh, one_step = reference_step(case.trainable)
    expected = answers_of_step(one_step, fresh_state(one, one_mesh), put_batch(joined, one.data, one_mesh))
    step_fn = make_train_step(config, mesh, abstract_state(config, mesh))
    answers = answers_of_step(step_fn, fresh_state(config, mesh), put_batch(batch, config.data, mesh))
    compare(answers, expected, worst)
    if case.eval_rows:
        check_evaluation(case, mesh, joined, worst)


def main(examples: int, number: int) -> None:
    seen: set[Case] = set()
    failed: list[str] = []
    worst: dict[str, float] = {}

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def property_holds(case: Case) -> None:
        if case in seen:
            return
        seen.add(case)
        try:
            check(case, worst)
            print(f"{len(seen)} after {time.monotonic() - start:.0f} s: {case}", file=sys.stderr, flush=True)
        except Exception as error:  # compiling takes seconds: the others are tried as well, none is shrunk
            failed.append(f"{case}: {type(error).__name__} {error}")
            print(failed[-1], file=sys.stderr, flush=True)

    start = time.monotonic()
    property_holds()
    meshes = {(case.slices, case.data, case.fsdp, case.tensor) for case in seen}
    seconds = round(time.monotonic() - start)
    print(json.dumps({"cases": len(seen), "meshes": len(meshes), "worst": worst, "seconds": seconds, "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
