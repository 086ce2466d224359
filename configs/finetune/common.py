"""What full fine-tuning and LoRA share: the numbers of the released scripts finetune/*.sh.

These have a rate of 1e-5 that falls to 0 along a cosine, weight decay 0.1, beta2 0.95, warm-up over 1 % of the steps,
rows of 2,048 tokens and a batch of 8 dialogues per GPU. Rows are packed here, so that a row holds several dialogues.
"""

import ml_collections

from configs import base


def finetune(
    *, data: str, start: str, mesh: str, steps: float, rows: float, devices: float, trainable: tuple[str, ...]
) -> ml_collections.ConfigDict:
    """The finished config.

    Args:
      data: a JSON file of conversations, or another source of dialogues.
      start: the folder of the run or of the imported release that is fine-tuned.
      mesh: a recipe in `configs/meshes`.
      steps: updates.
      rows: packed rows per update.
      devices: among which the rows of a microbatch are divided; one row on each.
      trainable: the components that are trained.

    Raises:
      ValueError: if a number is not whole and positive, or the rows do not divide among the devices.
    """
    for name, number in (("steps", steps), ("rows", rows), ("devices", devices)):
        if number != int(number) or number < 1:
            raise ValueError(f"the argument {name}={number:g} must be a whole number from 1 on")
    if rows % devices:
        raise ValueError(f"the argument rows={rows:g} must be a multiple of devices={devices:g}")
    optimizer = base.optimizer(peak=1e-5, minimum=0.0, warmup=int(steps) // 100, vit_layer_decay=1.0)
    config = base.stage(
        mesh,
        batch="rows",
        rows_per_step={"rows": int(rows)},
        data=dict(
            mixture=(dict(name="dialogue", task="dialogue", records=data, weight=1.0),),
            image_size=448,
            sequence_length=2048,
            accumulation=1,
            images_per_row=4.0,
            seed=0,
            group_rows=1,
            streams=1,
        ),
        optimizer={**optimizer, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
        init=base.continue_from("", start),
        train=base.train("sft", trainable, int(steps)),
    )
    config.data.accumulation = int(rows) // int(devices)  # instead of what the recipe has for the batch of the paper
    config.train.log_every = 1
    return config
