"""Compiles the programs of `tests/golden/hlo/` with libtpu: small ones, whose figures are known by hand.

Usage, in an environment with requirements-tpu.txt: python tests/planning/make_golden_hlo.py
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwenvl_jax.planning import aot

aot.compiler_environment(os.environ)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import mesh_utils  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from qwenvl_jax.chips import parse_topology  # noqa: E402
from qwenvl_jax.models.attention import attention  # noqa: E402
from qwenvl_jax.sharding.compiler import ASYNC_COLLECTIVES, SPARSE_CORE_COLLECTIVES  # noqa: E402

FOLDER = Path(__file__).parents[1] / "golden" / "hlo"
BF16 = jnp.bfloat16


def mesh_of(topology: str, shape: tuple[int, ...], names: tuple[str, ...]) -> Mesh:
    devices = aot.devices(parse_topology(topology))
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), names)


def shaped(mesh: Mesh, shape: tuple[int, ...], dtype: str, *spec: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def matmul() -> jax.stages.Lowered:
    """One product, 8192 x 4096 by 4096 x 4096, on one v5e."""
    mesh = mesh_of("v5e:1x1", (1,), ("data",))
    return jax.jit(lambda x, w: x @ w).lower(shaped(mesh, (8192, 4096), BF16), shaped(mesh, (4096, 4096), BF16))


def scan() -> jax.stages.Lowered:
    """Value and gradient of six layers tanh(h w) in a loop, on one v5e: 3 products per layer."""
    mesh = mesh_of("v5e:1x1", (1,), ("data",))

    def loss(w: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)
        return jnp.sum(h.astype(jnp.float32) ** 2)

    return jax.jit(jax.value_and_grad(loss)).lower(
        shaped(mesh, (6, 2048, 2048), BF16), shaped(mesh, (4096, 2048), BF16)
    )


def sharded() -> jax.stages.Lowered:
    """The same with float32 weights split over fsdp 4 and rows over data 4 x fsdp 4, recomputed, on v5e:4x4."""
    mesh = mesh_of("v5e:4x4", (4, 4), ("data", "fsdp"))

    def loss(w: Any, x: Any) -> Any:
        layer = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w.astype(BF16)), None))
        return jnp.sum(jax.lax.scan(layer, x, w)[0].astype(jnp.float32) ** 2)

    weights = NamedSharding(mesh, P(None, "fsdp"))
    return jax.jit(jax.value_and_grad(loss), out_shardings=(NamedSharding(mesh, P()), weights)).lower(
        shaped(mesh, (6, 2048, 2048), jnp.float32, None, "fsdp"), shaped(mesh, (16384, 2048), BF16, ("data", "fsdp"))
    )


def feed_forward(topology: str, shape: tuple[int, int], rows: int, options: dict) -> jax.stages.Lowered:
    """Gradient of six layers 4096 -> 16384 -> 4096 over data x fsdp, for `rows` rows of each device."""
    mesh = mesh_of(topology, shape, ("data", "fsdp"))

    def layer(h: Any, w: Any) -> Any:
        return h + jnp.tanh(jax.nn.silu(h @ w["a"].astype(BF16)) @ w["b"].astype(BF16)), None

    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(jax.lax.scan(layer, x, w)[0].astype(jnp.float32) ** 2)

    weights = NamedSharding(mesh, P(None, "fsdp"))
    w = {
        "a": shaped(mesh, (6, 4096, 16384), jnp.float32, None, "fsdp"),
        "b": shaped(mesh, (6, 16384, 4096), jnp.float32, None, "fsdp"),
    }
    step = jax.jit(
        jax.value_and_grad(loss),
        out_shardings=(NamedSharding(mesh, P()), {"a": weights, "b": weights}),
        compiler_options=options,
    )
    return step.lower(w, shaped(mesh, (mesh.size * rows, 4096), BF16, ("data", "fsdp")))


def overlapped() -> jax.stages.Lowered:
    """On v5p:4x4x4, data 4 x fsdp 16: gathers run beside products."""
    return feed_forward("v5p:4x4x4", (4, 16), 4096, ASYNC_COLLECTIVES)


def sparse_cores() -> jax.stages.Lowered:
    """On v6e:16x16, data 16 x fsdp 16: gathers and sums of gradients run on the SparseCores, beside products."""
    return feed_forward("v6e:16x16", (16, 16), 8192, ASYNC_COLLECTIVES | SPARSE_CORE_COLLECTIVES)


def splash() -> jax.stages.Lowered:
    """Causal attention with segments and its gradients, 8 rows of 1024 tokens, 4 heads of 104, on v5e:2x2."""
    mesh = mesh_of("v5e:2x2", (2, 2, 1), ("data", "fsdp", "tensor"))

    def loss(q: Any, k: Any, v: Any, ids: Any) -> Any:
        out = attention(q, k, v, segment_ids_BL=ids, causal=True, implementation="splash")
        return jnp.sum(out.astype(jnp.float32) ** 2)

    rows = shaped(mesh, (8, 1024, 4, 104), BF16, ("data", "fsdp"))
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(
            rows, rows, rows, shaped(mesh, (8, 1024), jnp.int32, ("data", "fsdp"))
        )


PROGRAMS: tuple[Callable[[], jax.stages.Lowered], ...] = (matmul, scan, sharded, overlapped, sparse_cores, splash)


def main(names: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        if not names or program.__name__ in names:
            text = program().compile().as_text() or ""
            # No time in the header, so that the same text gives the same file.
            (FOLDER / f"{program.__name__}.txt.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
            print(program.__name__, len(text))


if __name__ == "__main__":
    main(sys.argv[1:])
