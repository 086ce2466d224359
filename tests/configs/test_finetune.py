"""The configs of fine-tuning: validation, quantised kernels, and arguments that cannot be meant."""

from __future__ import annotations

import pytest

from configs.finetune import full, lora, qlora
from qwenvl_jax.config import load_config
from qwenvl_jax.runtime.errors import UserError

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
