"""The config of `chaos`: stage 1 of the quickstart from fresh parameters, on four devices, with many checkpoints."""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import stage1_pretrain


@named_arguments
def get_config(data: str = "", steps: float = 200.0, every: float = 5.0) -> ml_collections.ConfigDict:
    config = stage1_pretrain.get_config(f"data={data}")
    config.init.update(stage="", decoder="")
    config.watching.report_minutes = 0.0
    config.watchdog.update(least_seconds=60.0)  # a hung reader is to end within the patience of the script
    config.train.update(steps=int(steps), log_every=1, checkpoint_every=int(every), keep_checkpoints=3)
    config.optimizer.warmup_steps = min(20, int(steps) // 10)
    config.data.update(streams=4, image_groups=4, decode_workers=1)
    config.mesh.update(data=2, fsdp=2)
    return config
