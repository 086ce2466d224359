"""The configs of fine-tuning: validation, quantised kernels, and arguments that cannot be meant."""

from __future__ import annotations

import math

import pytest

from configs import base
from configs.finetune import full, lora, qlora
from qwenvl_jax.config import load_config
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import mesh_shape

RECIPES = {"full": full, "lora": lora, "qlora": qlora}


@pytest.mark.parametrize("name", RECIPES)
def test_validation_is_a_share_or_a_file(name: str) -> None:
    recipe = RECIPES[name]
    plain = load_config(recipe.get_config(data="talk.json"))
    assert plain.evaluation.every == 0 and plain.data.heldout_share == 0

    share = load_config(recipe.get_config(data="talk.json", validation="0.02", steps=200.0))
    assert share.data.heldout_share == 0.02
    assert (share.evaluation.every, share.evaluation.split, share.evaluation.mixture) == (10, "heldout", ())

    file = load_config(recipe.get_config(data="talk.json", validation="other.jsonl", steps=5.0))
    assert file.data.heldout_share == 0 and file.evaluation.every == 1
    (source,) = file.evaluation.mixture
    assert (source.records, source.task) == ("other.jsonl", "dialogue")
    assert [source.records for source in file.data.mixture] == ["talk.json"]

    for wrong in ("1.5", "0", "-0.1"):
        with pytest.raises(ValueError, match=f"validation={wrong} must be a share between 0 and 1, or name a file"):
            recipe.get_config(validation=wrong)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mesh", base.MESHES)
def test_every_recipe_of_chips_suits_one_device_and_several(name: str, mesh: str) -> None:
    """What the recipe has for the paper's stage 3 on its slice must not remain: its streams and its number of chips."""
    for devices, rows in ((1.0, 1.0), (1.0, 8.0), (8.0, 16.0)):
        config = load_config(RECIPES[name].get_config(mesh=mesh, devices=devices, rows=rows))
        assert config.data.rows_per_microbatch == devices and config.data.streams == 1
        assert math.prod(mesh_shape(config.mesh, int(devices))) == devices


def test_q_lora_is_lora_beside_quantised_kernels() -> None:
    plain = load_config(lora.get_config())
    for kernels in ("nf4", "int8"):
        config = load_config(qlora.get_config(kernels=kernels))
        assert config.compute.frozen_kernels == kernels
        assert (config.lora, config.train) == (plain.lora, plain.train)
    with pytest.raises(ValueError, match="kernels=int4 is not one of nf4, int8"):
        qlora.get_config(kernels="int4")


def test_a_rank_above_that_of_a_kernel_is_refused() -> None:
    values = lora.get_config()
    values.lora.rank = load_config(values).model.decoder.width
    load_config(values)
    values.lora.rank += 1
    with pytest.raises(UserError, match=r"lora\.rank 4097 is more than the width 4096"):
        load_config(values)
