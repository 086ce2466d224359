"""What full fine-tuning and LoRA share: the numbers of the released scripts finetune/*.sh.

These have a rate of 1e-5 that falls to 0 along a cosine, weight decay 0.1, beta2 0.95, warm-up over 1 % of the steps,
rows of 2,048 tokens and a batch of 8 dialogues per GPU. Rows are packed here, so that a row holds several dialogues.
"""

import ml_collections

from configs import base

EVALUATIONS = 20  # of the held-out loss, over the whole run


def finetune(
    *,
    data: str,
    start: str,
    validation: str,
    mesh: str,
    steps: float,
    rows: float,
    devices: float,
    trainable: tuple[str, ...],
) -> ml_collections.ConfigDict:
    """The finished config.

    Args:
      data: a JSON file of conversations, or another source of dialogues.
      start: the folder of the run or of the imported release that is fine-tuned.
      validation: the share of a JSON file that is held out, e.g. "0.02", or another source of dialogues; its loss is
        measured while the run trains. "" measures none.
      mesh: a recipe in `configs/meshes`.
      steps: updates.
      rows: packed rows per update.
      devices: among which the rows of a microbatch are divided; one row on each.
      trainable: the components that are trained.

    Raises:
      ValueError: if a number is not whole and positive, the rows do not divide among the devices, or the share is not
        between 0 and 1.
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
    # Instead of what the recipe has for the paper's stage 3, its batch and its number of chips:
    config.data.update(dict(accumulation=int(rows) // int(devices), streams=1))
    config.mesh.update(dict(data=1, fsdp=-1))
    config.train.log_every = 1
    _measure_heldout_loss(config, validation)
    return config


def _measure_heldout_loss(config: ml_collections.ConfigDict, validation: str) -> None:
    """Has the held-out loss measured; see `finetune`."""
    if not validation:
        return
    config.evaluation.every = max(1, config.train.steps // EVALUATIONS)
    config.evaluation.split = "heldout"
    try:
        share = float(validation)
    except ValueError:
        config.evaluation.mixture = (dict(name="validation", task="dialogue", records=validation, weight=1.0),)
        return
    if not 0 < share < 1:
        raise ValueError(f"the argument validation={validation} must be a share between 0 and 1, or name a file")
    config.data.heldout_share = share
