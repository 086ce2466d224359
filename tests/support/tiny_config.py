"""A config of the tiny model on the records of `tiny_run.write_data`; the argument is their folder."""

import ml_collections

from configs import base, model
from configs.meshes import cpu


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    folder = arg or "data/tiny"
    config = ml_collections.ConfigDict(
        dict(model=model.tiny(), tokenizer=dict(kind="sentencepiece", path=f"{folder}/tiny.model"))
    )
    cpu.apply(config)
    config.compute.loss_chunk = 64
    config.data = dict(
        mixture=tuple(
            dict(name=task, task=task, records=f"{folder}/{task}", weight=weight)
            for task, weight in (("caption", 2.0), ("vqa", 1.0), ("text", 1.0))
        ),
        image_size=28,
        sequence_length=48,
        rows_per_step=8,
        accumulation=2,
        images_per_row=3.0,
        packing_window=4,
        seed=0,
        image_groups=1,
        streams=1,
        decode_workers=0,
    )
    config.optimizer = dict(
        peak_learning_rate=3e-3,
        min_learning_rate=1e-4,
        warmup_steps=4,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.05,
        clip_norm=1.0,
        vit_layer_decay=0.9,
        moments_memory="device",
    )
    config.init = dict(stage="", vit="", resampler="", decoder="", step=-1)
    config.train = dict(
        stage="multitask",
        trainable=("vit", "vit_head", "resampler", "decoder"),
        steps=24,
        seed=0,
        log_every=5,
        checkpoint_every=8,
        keep_checkpoints=3,
    )
    config.evaluation = dict(every=0, split="", batches=4)
    config.watching = {**base.watching(), "host_sync": "refused", "report_minutes": 0.0}
    config.watchdog = base.watchdog()
    config.anomalies = base.anomalies()
    config.checkpoint = base.checkpoint()
    return config
