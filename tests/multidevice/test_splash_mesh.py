"""The splash kernel under a mesh of 8 virtual devices, in Pallas' interpreter, in a separate process."""

import os
import pathlib
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from qwenvl_jax.models.attention import attention

rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(4, 12, 2, 8)), jnp.float32) for _ in range(3))
ids = jnp.asarray(np.repeat([[1] * 5 + [2] * 4 + [0] * 3], 4, 0), jnp.int32)

def loss(q, k, v, implementation):
    out = attention(q, k, v, segment_ids_BL=ids, causal=True, implementation=implementation, interpret=True)
    return jnp.sum(jnp.sin(out))

gradient = lambda implementation: jax.jit(jax.grad(lambda *a: loss(*a, implementation), argnums=(0, 1, 2)))
expected = gradient("xla")(q, k, v)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
with jax.set_mesh(mesh):
    sharding = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor", None))
    got = gradient("splash")(*(jax.device_put(x, sharding) for x in (q, k, v)))
assert got[0].sharding.is_equivalent_to(sharding, 4), got[0].sharding
for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, atol=1e-5)
# Five rows do not divide over data x fsdp, like the last batch of an evaluation; they are not split.
five = [jnp.concatenate([x, x[:1]]) for x in (q, k, v)]
with jax.set_mesh(mesh):
    whole = jax.jit(lambda q, k, v: attention(q, k, v, causal=True, implementation="splash", interpret=True))(*five)
np.testing.assert_allclose(whole, attention(*five, causal=True, implementation="xla"), atol=1e-5)
print("equal")
"""


def test_splash_is_mapped_over_the_mesh() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(pathlib.Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
