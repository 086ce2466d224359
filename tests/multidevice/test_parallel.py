"""Products, lookups, image features and the loss with their written-out collectives equal their plain forms.

Values and gradients, on eight and twelve virtual devices, in a separate process.
"""

import math
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import math, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from qwenvl_jax.models.parallel import lookup, product, take_features
from qwenvl_jax.sharding.rules import KernelAxes
from qwenvl_jax.training.loss import token_loss_sum

data, fsdp, tensor = map(int, sys.argv[1:])
mesh = jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
rng = np.random.default_rng(0)
rows = P(("data", "fsdp"))
normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)

def check(function, specs, *arrays):
    # The same function with and without a mesh; without one it is plain. The values are compared one by one, because
    # their sum rounds by more than they differ.
    sine = lambda *a: (jnp.sum(y := jnp.sin(function(*a))), y)
    weighted = jax.jit(jax.grad(sine, argnums=range(len(arrays)), has_aux=True))
    expected = weighted(*arrays)
    with jax.set_mesh(mesh):
        split = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs)]
        compiled = weighted.lower(*split).compile()
        values = compiled(*split)
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    return compiled.as_text()

count = 2 * data * fsdp  # rows
x = normal(count, 3, 24, 24)
kernels = {
    KernelAxes(0, None): P("fsdp"),
    KernelAxes(1, None): P(None, "fsdp"),
    KernelAxes(0, 2): P("fsdp", None, "tensor"),
    KernelAxes(2, 0): P("tensor", None, "fsdp"),
    KernelAxes(0, 0): P(("tensor", "fsdp")),
}
for axes, spec in kernels.items():
    text = check(lambda x, k: product(x, k, 2, axes), (rows, spec), x, normal(24, 24, 16) / 16)
    if fsdp > 1:
        # An axis split over tensor stays split: each device reduces only its part.
        reduced = re.findall(r"= f32.([0-9,]+).\\S* reduce-scatter", text)
        parts = fsdp * (tensor if axes.tensor is not None else 1)
        assert [math.prod(map(int, dims.split(","))) for dims in reduced] == [24 * 24 * 16 // parts], (axes, reduced)
three = lambda x, k: jnp.stack(product(x, k, 2, KernelAxes(0, 3), unstack=True))
check(three, (rows, P("fsdp", None, None, "tensor")), x, normal(24, 24, 3, 16) / 16)
ids = jnp.asarray(rng.integers(0, 20, (count, 5)))
check(lambda table: lookup(table, ids, jnp.float32), (P(None, "fsdp"),), normal(20, 24))
for groups in (size for size in (1, 2, 4, 8, 16, 24) if count % size == 0):
    features = math.lcm(groups, data * fsdp) * 6
    slots = jnp.asarray(rng.integers(-1, features // groups, (count, 5)))
    text = check(lambda f: take_features(f, slots, groups), (rows,), normal(features, 8))
    exchanged = "all-gather" in text or "collective-permute" in text
    assert exchanged == (groups % (data * fsdp) > 0), (groups, text)
    # On a power of two of devices by collectives alone, as the recipes' predicted figures assume.
    assert "collective-permute" not in text or count & (count - 1), groups
targets, sources = (jnp.asarray(rng.integers(0, limit, (count, 5))) for limit in (12, 4))
some = rng.random((count, 5)) < 0.5
uneven = np.repeat(np.arange(count)[:, None] > 6, 5, axis=1)  # some devices need no chunk, others all
for mask, chunk in ((some, 3), (some, 100), (uneven, 2)):
    mask = jnp.asarray(mask, jnp.float32)
    # The sum of all tokens and those by source.
    losses = lambda hidden, head: jnp.hstack(token_loss_sum(hidden, targets, mask, sources, head, 4, chunk, True)) / 100
    check(losses, (rows, P("fsdp", "tensor")), normal(count, 5, 24), normal(24, 12))

# Without remat a scan saves what its backward pass needs, but never the gathered kernels of all layers.
from configs import model as models
from qwenvl_jax.config import ComputeConfig, ModelConfig, from_config_dict
from qwenvl_jax.models import qwen_vl

model = from_config_dict(ModelConfig, dict(models.tiny().items()))
compute = ComputeConfig("float32", "float32", "xla", "none", "none", False, 100)
params = qwen_vl.abstract_params(model)
rows_in = {
    "embeddings_BLD": jnp.zeros((count // 2, 3, model.decoder.width)),
    "segment_ids_BL": jnp.ones((count // 2, 3), jnp.int32),
}
states = lambda params: qwen_vl.hidden_states(
    params, model, compute, **rows_in, positions_BL=jnp.zeros((count // 2, 3), jnp.int32)
)
kept = lambda: sorted(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(states, p)[1], params)))
plain = kept()[-1]
query = params["decoder"]["blocks"]["attn"]["qkv"]["kernel"].size // 3
# A device may save its part of a kernel, here unstacked; a part on several devices counts once for each.
part = query * data if fsdp > 1 else 0
with jax.set_mesh(mesh):
    if model.decoder.width % fsdp == 0:
        assert kept()[-1] == max(plain, part), (kept()[-3:], plain, part)
print("equal")
"""


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (4, 2, 1), (1, 2, 4), (3, 4, 1), (3, 2, 2)])
def test_values_and_gradients_equal_the_plain_ones(mesh: tuple[int, int, int]) -> None:
    flags = f"--xla_force_host_platform_device_count={math.prod(mesh)}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(pathlib.Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", SCRIPT, *map(str, mesh)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
