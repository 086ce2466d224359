"""What the three full-size stages share."""

import importlib

import ml_collections

from configs import model

MESHES = ("cpu", "gpu", "v4", "v5e", "v5p", "v6e", "tpu7x")

# Of `config.data`, the same in all stages; all of it is ours.
DATA = dict(
    packing_window=32,  # a row is the fullest that so many samples make
    max_corrupt_share=0.01,
    decode_workers=32,  # per host, at most one per core
    jpeg_draft=False,
    heldout_share=0.0,
)


def stage(
    mesh: str, *, batch: str, rows_per_step: dict[str, int], data: dict, optimizer: dict, init: dict, train: dict
) -> ml_collections.ConfigDict:
    """The finished config of a stage.

    Args:
      mesh: a recipe in `configs/meshes`; it sets the mesh and the precision, and changes what suits the stage.
      batch: what the batch size of the paper counts, a key of `rows_per_step`.
      rows_per_step: packed rows per optimiser step, by what the batch size of the paper counts.
      data: the values of `config.data` that the stages do not share; `group_rows` (rows per image group) stands for
        `image_groups`, which then follows from the accumulation.
      optimizer: see `optimizer`.
      init: see `continue_from`.
      train: see `train`.

    Raises:
      ValueError: if there is no such recipe, or no such batch.
    """
    if mesh not in MESHES:
        raise ValueError(f"the mesh {mesh!r} is not one of {', '.join(MESHES)}")
    if batch not in rows_per_step:
        raise ValueError(f"the batch {batch!r} is not one of {', '.join(rows_per_step)}")
    recipe = importlib.import_module(f"configs.meshes.{mesh}")
    group_rows = data["group_rows"]
    values = {name: value for name, value in data.items() if name != "group_rows"}
    values |= dict(rows_per_step=rows_per_step[batch], image_groups=0)
    config = ml_collections.ConfigDict(
        dict(
            model=model.qwen_vl_9b6(),
            tokenizer=dict(kind="qwen", path=""),
            data={**DATA, **values},
            optimizer=optimizer,
            init=init,
            train=train,
            evaluation=dict(every=0, split="", batches=4, mixture=()),
            watching=watching(),
            watchdog=watchdog(),
            anomalies=anomalies(),
            checkpoint=checkpoint(),
        )
    )
    recipe.apply(config)
    for name in (train["stage"], f"{train['stage']}_{batch}"):
        config.update_from_flattened_dict(recipe.STAGES.get(name, {}))
    if group_rows > 1:
        config.data.image_groups = config.data.rows_per_step // config.data.accumulation // group_rows
    return config


def source(folder: str, name: str, task: str, weight: float) -> dict:
    """One mixture entry. `weight` is in millions of samples."""
    return dict(name=name, task=task, records=f"{folder}/{name}", weight=weight)


def optimizer(*, peak: float, minimum: float, warmup: int, vit_layer_decay: float) -> dict:
    """AdamW as in all stages (paper, Table 8); drop path is 0 throughout and does not exist here."""
    return dict(
        peak_learning_rate=peak,
        min_learning_rate=minimum,
        warmup_steps=warmup,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.05,
        clip_norm=1.0,
        vit_layer_decay=vit_layer_decay,
        kind="adamw",
        muon_momentum=0.95,
        muon_iterations=5,
        vocabulary_rate=1.0,
        first_moment_dtype="float32",
        moments_memory="device",
    )


def continue_from(stage: str, run: str) -> dict:
    """All towers start from the last checkpoint of another stage's run."""
    return dict(stage=stage, vit=run, resampler=run, decoder=run, step=-1)


def train(stage: str, trainable: tuple[str, ...], steps: int) -> dict:
    """The stage; seed, logging and checkpoints are ours."""
    return dict(
        stage=stage, trainable=trainable, steps=steps, seed=0, log_every=10, checkpoint_every=500, keep_checkpoints=3
    )


def checkpoint() -> dict:
    """When checkpoints are written and which are kept, besides those of `train`."""
    local = dict(local="", local_every=0, local_minutes=0.0)
    return dict(minutes=0.0, keep_every=0, keep_best=0, best_by="train/loss", best_is="lowest", **local)


def watching() -> dict:
    """What a run shows of itself; nothing of it changes the training."""
    return dict(profile_steps=(), profile_every=0, report_minutes=10.0, host_sync="allowed", wandb="", goodput_job="")


def watchdog() -> dict:
    """When a run counts as hung: seconds without a step or for a checkpoint, and that many of their medians."""
    return dict(factor=20.0, least_seconds=900.0, first_step_seconds=7200.0, first_checkpoint_seconds=7200.0)


def anomalies() -> dict:
    """Steps that are not finite are left out; there is no rule for spikes."""
    return dict(
        loss_factor=0.0,
        gradient_factor=0.0,
        mean_steps=100,
        warmup_steps=100,
        max_in_a_row=20,
        max_recent=100,
        recent_steps=1000,
        dumps=3,
    )
