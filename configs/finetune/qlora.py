"""Fine-tuning of low-rank adapters beside a frozen decoder of 4 or 8 bits (Q-LoRA); docs/finetuning.md has every step.

python -m qwenvl_jax.train --config=configs/finetune/qlora.py:data=train.json,start=runs/qwen_vl_chat \
    --workdir=runs/qlora

`start` is what `python -m qwenvl_jax.convert import` has written, or a run; its weights are quantised when the run
begins. As in the released finetune.py, the vocabulary stays frozen: `start` must have seen ChatML, as Qwen-VL-Chat has.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.finetune import lora

KERNELS = ("nf4", "int8")


@named_arguments
def get_config(
    data: str = "data/train.json",
    start: str = "runs/qwen_vl_chat",
    validation: str = "",
    kernels: str = "nf4",
    mesh: str = "gpu",
    steps: float = 1000.0,
    rows: float = 8.0,
    devices: float = 1.0,
) -> ml_collections.ConfigDict:
    if kernels not in KERNELS:
        raise ValueError(f"the argument kernels={kernels} is not one of {', '.join(KERNELS)}")
    config = lora.get_config(
        data=data, start=start, validation=validation, mesh=mesh, steps=steps, rows=rows, devices=devices
    )
    config.compute.frozen_kernels = kernels
    return config
