"""Fine-tuning of low-rank adapters on a JSON file of conversations; docs/finetuning.md has every step.

python -m qwenvl_jax.train --config=configs/finetune/lora.py:data=train.json,start=runs/qwen_vl_chat \
    --workdir=runs/lora

`start` is what `python -m qwenvl_jax.convert import` has written, or a run. With `vocabulary=trained` the embedding and
the head are trained whole: for a start that never saw ChatML, such as Qwen-VL, not Qwen-VL-Chat. Rank, alpha, dropout
and targets are those of the released finetune.py.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.finetune import common

VOCABULARY = {"frozen": (), "trained": ("vocabulary",)}


@named_arguments
def get_config(
    data: str = "data/train.json",
    start: str = "runs/qwen_vl_chat",
    validation: str = "",
    vocabulary: str = "frozen",
    mesh: str = "gpu",
    steps: float = 1000.0,
    rows: float = 8.0,
    devices: float = 1.0,
) -> ml_collections.ConfigDict:
    if vocabulary not in VOCABULARY:
        raise ValueError(f"the argument vocabulary={vocabulary} is not one of {', '.join(VOCABULARY)}")
    trainable = ("lora", *VOCABULARY[vocabulary])
    config = common.finetune(
        data=data,
        start=start,
        validation=validation,
        mesh=mesh,
        steps=steps,
        rows=rows,
        devices=devices,
        trainable=trainable,
    )
    config.lora = dict(
        rank=64,
        alpha=16.0,
        dropout=0.05,
        targets=(
            "decoder/blocks/attn/qkv",  # c_attn
            "decoder/blocks/attn/out",  # attn.c_proj
            "decoder/blocks/mlp/up",  # w1
            "decoder/blocks/mlp/gate",  # w2
        ),
    )
    return config
