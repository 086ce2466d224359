"""What the three full-size stages share."""

import importlib

import ml_collections

from configs import model

MESHES = ("cpu", "gpu", "v4", "v5e", "v5p", "v6e")


def arguments(arg: str | None) -> tuple[str, str, str]:
    """Splits `MESH,DATA,RUNS` into its parts; any of them may be left out."""
    parts = [part.strip() for part in (arg or "").split(",")]
    if len(parts) > 3:
        raise ValueError(f"the argument {arg!r} has {len(parts)} parts; it is MESH,DATA,RUNS")
    mesh, data, runs = (*parts, "", "")[:3]
    mesh = mesh or "v5p"
    if mesh not in MESHES:
        raise ValueError(f"the mesh {mesh!r} is none of {', '.join(MESHES)}")
    return mesh, data or "data", runs or "runs"


def base(mesh: str) -> ml_collections.ConfigDict:
    """Model, vocabulary, mesh and compute; the stage adds `data`, `optimizer`, `init` and `train`."""
    config = ml_collections.ConfigDict(dict(model=model.qwen_vl_9b6(), tokenizer=dict(kind="qwen", path="")))
    importlib.import_module(f"configs.meshes.{mesh}").apply(config)
    return config


def adapt(config: ml_collections.ConfigDict, mesh: str) -> ml_collections.ConfigDict:
    """The finished config of a stage with what the mesh's recipe changes for it."""
    recipe = importlib.import_module(f"configs.meshes.{mesh}")
    config.update_from_flattened_dict(getattr(recipe, "STAGES", {}).get(config.train.stage, {}))
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
        first_moment_dtype="float32",
        moments_memory="device",
    )


def train(stage: str, trainable: tuple[str, ...], steps: int) -> dict:
    """The stage; seed, logging and checkpoints are ours."""
    return dict(
        stage=stage, trainable=trainable, steps=steps, seed=0, log_every=10, checkpoint_every=500, keep_checkpoints=3
    )
