"""The config of `chaos`: all towers of the tiny model on four devices, with a checkpoint every few steps."""

import ml_collections

from configs.arguments import named_arguments
from tests.support import tiny_config


@named_arguments
def get_config(data: str = "", steps: float = 200.0, every: float = 5.0) -> ml_collections.ConfigDict:
    config = tiny_config.get_config(data)
    config.watchdog.update(least_seconds=75.0)  # longer than an outage of the bucket, shorter than the patience
    config.train.update(steps=int(steps), log_every=1, checkpoint_every=int(every), keep_checkpoints=3)
    config.data.update(streams=4, image_groups=4, rows_per_step=16, accumulation=1, decode_workers=1)
    config.mesh.update(data=2, fsdp=2)
    return config
