"""Loss and gradients of batches whose samples share pictures, and of the same batches with a picture per sample.

Usage: shared_pictures.py FOLDER, with the records of `tiny_run.write_data`. The batches come from the pipeline: records
with up to five questions about one picture. On one device and on meshes of eight, the last line of the output is JSON:
the largest difference of the loss and of any gradient, as the norm of the difference over the norm of the array. The
gradient of the resampler's key bias is 0 in exact arithmetic, because softmax does not see it; its largest value is
given instead.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.config import Config, MeshConfig, SourceConfig
from qwenvl_jax.data.pipeline import pipeline
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten, split
from qwenvl_jax.sharding.batch import put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.step import microbatch_loss
from tests.support import tiny_run

QUESTIONS = ("What colour is it?", "Is it red?", "Is it green?", "What is it?", "Which square is it?")
KEY_BIAS = "resampler/attn/key/bias"
MESHES = ((1, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1))  # slices, data, fsdp, tensor


def write_questions(folder: Path) -> None:
    """Questions about the pictures of the `vqa` records: one to five in a record."""
    records = []
    for number, record in enumerate(RecordReader(folder / "vqa")):
        asked = [{"question": text, "answer": f"{number} red"} for text in QUESTIONS[: 1 + number % len(QUESTIONS)]]
        records.append(dataclasses.replace(record, content=cast(Content, {"annotations": asked})))
    write_records(folder / "questions", {"train": records}, name="questions")


def config_of(folder: Path) -> Config:
    """Sixteen rows in image groups of two, which show few pictures."""
    config = tiny_run.make_config(folder, data__rows_per_step=16, data__accumulation=1, data__sequence_length=96)
    source = SourceConfig("questions", "vqa", str(folder / "questions"), 1.0)
    data = dataclasses.replace(config.data, mixture=(source,), image_groups=8, images_per_row=2.0)
    return dataclasses.replace(config, data=data)


def with_own_pictures(batch: Batch, config: Config) -> tuple[Batch, Config]:
    """The same rows with a copy of its picture for every sample, and the config with as many images as that needs."""
    data = config.data
    queries = config.model.resampler.queries
    most = 6 * data.group_rows  # samples of a row are no more than six
    larger = dataclasses.replace(config, data=dataclasses.replace(data, images_per_row=6.0))
    slots = batch.image_slot.copy()
    images = np.zeros((1, most * data.groups, *batch.images.shape[2:]), np.uint8)
    used = [0] * data.groups
    for row in range(data.rows_per_microbatch):
        group = row // data.group_rows
        for segment in range(1, int(batch.segment_ids[0, row].max()) + 1):
            taken = (batch.segment_ids[0, row] == segment) & (batch.image_slot[0, row] >= 0)
            image = int(batch.image_slot[0, row][taken].min()) // queries
            slots[0, row][taken] += (used[group] - image) * queries
            images[0, group * most + used[group]] = batch.images[0, group * data.group_images + image]
            used[group] += 1
    return batch._replace(image_slot=slots, images=images), larger


def parameters(config: Config) -> Any:
    """Parameters large enough for pictures to matter."""
    rng = np.random.default_rng(1)
    params = qwen_vl.init_params(config.model, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def loss_and_gradients(config: Config, batch: Batch, mesh_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    slices, data, fsdp, tensor = mesh_shape
    count = slices * data * fsdp * tensor
    mesh = make_mesh(MeshConfig(data, fsdp, tensor, slices, 0), jax.devices()[:count])
    trainable, frozen = split(parameters(config), config.train.trainable)

    def function(trainable: Any, micro: Batch) -> Any:
        return microbatch_loss(trainable, frozen, micro, jnp.sum(micro.loss_mask), config, mesh)[0]

    with jax.set_mesh(mesh):
        on_devices = put_batch(batch, config.data, mesh)
        micro = jax.tree.map(lambda array: array[0], on_devices)
        loss, gradients = jax.jit(jax.value_and_grad(function))(trainable, micro)
    return {"loss": np.asarray(loss)} | {"/".join(path): np.asarray(leaf) for path, leaf in flatten(gradients).items()}


def main(folder: Path) -> None:
    write_questions(folder)
    config = config_of(folder)
    batch = next(iter(pipeline(config)))
    own, larger = with_own_pictures(batch, config)
    shared = (batch.images.any((2, 3, 4)).sum(), own.images.any((2, 3, 4)).sum())
    worst = {}
    key_bias = 0.0
    for mesh_shape in MESHES:
        left = loss_and_gradients(config, batch, mesh_shape)
        right = loss_and_gradients(larger, own, mesh_shape)
        key_bias = max(key_bias, *(float(np.abs(side.pop(KEY_BIAS)).max()) for side in (left, right)))
        differences = {path: np.linalg.norm(left[path] - right[path]) / np.linalg.norm(right[path]) for path in left}
        worst[str(mesh_shape)] = float(max(differences.values()))
    print(json.dumps({"pictures": int(shared[0]), "samples": int(shared[1]), "worst": worst, "key_bias": key_bias}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
