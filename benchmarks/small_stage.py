"""A small stage that the benchmarks of the loop and of the start train: records, and their config.

As a config file: --config=benchmarks/small_stage.py:FOLDER, with the folder of `write_data`. Its layers are written out
one by one, so that compiling takes much longer than anything else at the start.
"""

from __future__ import annotations

import pathlib

import ml_collections

from configs import base
from configs.meshes import cpu

ROWS, LENGTH, LAYERS = 8, 192, 12


def write_data(folder: pathlib.Path) -> None:
    """Writes a thousand texts and their vocabulary."""
    from qwenvl_jax.data.record_writer import write_records
    from qwenvl_jax.data.schema import Record
    from qwenvl_jax.data.vocabulary_training import train_sentencepiece

    texts = [f"number {number} is {number % 7} more than {number - number % 7}" * 8 for number in range(1000)]
    records = [
        Record(f"text-{number}", "text", "benchmark", "en", "CC0-1.0", (), {"text": text})
        for number, text in enumerate(texts)
    ]
    write_records(folder / "text", {"train": records}, name="text")
    train_sentencepiece(texts, 420, folder / "small.model")


def get_config(folder: str) -> ml_collections.ConfigDict:
    """A decoder of 12 layers on texts; the towers for images are there and small."""
    config = ml_collections.ConfigDict(
        dict(
            model=dict(
                name="small",
                vit=dict(width=64, layers=2, heads=2, mlp_dim=128, patch_size=14, position_grid=4, layer_norm_eps=1e-6),
                resampler=dict(query_grid=2, heads=4, layer_norm_eps=1e-6),
                decoder=dict(
                    vocab_size=512,
                    width=256,
                    layers=LAYERS,
                    heads=8,
                    mlp_dim=688,
                    rope_base=10000.0,
                    rms_norm_eps=1e-6,
                    train_length=256,
                    logn_attention=True,
                    dynamic_ntk=True,
                ),
            ),
            tokenizer=dict(kind="sentencepiece", path=f"{folder}/small.model"),
        )
    )
    cpu.apply(config)
    config.data = dict(
        mixture=(dict(name="text", task="text", records=f"{folder}/text", weight=1.0),),
        image_size=56,
        sequence_length=LENGTH,
        rows_per_step=ROWS,
        accumulation=1,
        images_per_row=0.0,
        packing_window=8,
        seed=0,
    )
    config.optimizer = base.optimizer(peak=1e-3, minimum=1e-4, warmup=1, vit_layer_decay=1.0)
    config.init = dict(stage="", vit="", resampler="", decoder="", step=-1)
    config.train = base.train("text", ("decoder",), 1000)
    config.evaluation = dict(every=0, split="", batches=4)
    config.watching = {**base.watching(), "report_minutes": 0.0}
    return config
