"""The model that chat, server and inference open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from etils import epath

from qwenvl_jax.config import RELEASED_TARGETS, Config
from qwenvl_jax.evaluation import placement
from qwenvl_jax.models import lora
from qwenvl_jax.params import LORA_A, LORA_B, LORA_SCALE, Params, flatten, parse_path
from qwenvl_jax.serving.open_model import open_model
from tests.support import adapter_run


def test_a_run_of_adapters_is_opened_as_the_model_that_they_make(
    config: Config, params: Params, tmp_path: Path
) -> None:
    config = adapter_run.configure(config, RELEASED_TARGETS, vocabulary=True)
    trained = adapter_run.with_adapters(config, params)
    workdir = adapter_run.write_run(config, trained, tmp_path / "run")
    opened = open_model(str(workdir), None, epath.Path(tmp_path / "imported"))
    assert (opened.starting_point.step, opened.image_size) == (config.train.steps, config.data.image_size)

    served = placement.load(opened.starting_point, opened.mesh).params["decoder"]
    layers = [flatten(layer) for layer in served["blocks"]]
    assert not any(lora.is_adapter(path) for layer in layers for path in layer)
    leaves = flatten(trained)
    for path in map(parse_path, RELEASED_TARGETS):
        kernel, a, b, scale = (np.asarray(leaves[(*path, name)]) for name in ("kernel", LORA_A, LORA_B, LORA_SCALE))
        for number, layer in enumerate(layers):
            update = scale[number] * np.tensordot(a[number], b[number], axes=1)
            assert np.abs(update).max() > 1e-2
            np.testing.assert_allclose(layer[(*path[2:], "kernel")], kernel[number] + update, atol=1e-5)
    for name in ("embedding", "lm_head"):
        np.testing.assert_array_equal(served[name], leaves[("decoder", name)])
