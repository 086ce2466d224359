"""Answers on meshes of up to 8 devices, of one process or of several, as JSON. See test_generation.py."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from qwenvl_jax.evaluation.generation.generate import Generator, Picture, Request
from qwenvl_jax.evaluation.generation.likelihood import OptionScorer
from qwenvl_jax.evaluation.generation.prefixes import Choice
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import distributed
from qwenvl_jax.serving.options import AnswerOptions
from qwenvl_jax.serving.slot_batch import SlotBatch
from qwenvl_jax.sharding.mesh import AXES
from qwenvl_jax.sharding.rules import param_shardings
from tests.multidevice.any_mesh import COMPUTE, MODEL

MESHES = ((1, 1, 1), (2, 1, 1), (8, 1, 1), (1, 1, 2), (2, 2, 2), (4, 1, 2))
LIMITS = Limits(max_new_tokens=9, min_new_tokens=2, stop_ids=tuple(range(12)))


def pixels_of(number: int) -> np.ndarray:
    side = MODEL.vit.patch_size * MODEL.vit.position_grid
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def requests(count: int) -> list[Request]:
    queries = MODEL.resampler.queries
    made = []
    for number in range(count):
        draw = np.random.default_rng(number)
        ids = draw.integers(0, MODEL.decoder.vocab_size, int(draw.integers(queries + 1, 2 * queries + 9)))
        slots = np.full(len(ids), -1)
        slots[1 : 1 + queries] = np.arange(queries)
        picture = number // 2
        shown = (Picture(picture, lambda number=picture: pixels_of(number)),)  # type: ignore[misc]
        made.append(Request(number, ids.astype(np.int32), slots.astype(np.int32), shown))
    return made


def choices(count: int) -> list[Choice]:
    """Prompts that begin with the same 80 tokens and a picture, and end in different ones."""
    queries = MODEL.resampler.queries
    beginning = np.random.default_rng(0).integers(0, MODEL.decoder.vocab_size, 80)
    made = []
    for number in range(count):
        draw = np.random.default_rng(number)
        ids = np.append(beginning, draw.integers(0, MODEL.decoder.vocab_size, 1 + number % 3))
        slots = np.full(len(ids), -1)
        slots[1 : 1 + queries] = np.arange(queries)
        options = [[int(token)] for token in draw.integers(0, MODEL.decoder.vocab_size, 4)]
        shown = (Picture(0, lambda: pixels_of(0)),)
        made.append(Choice(Request(number, ids.astype(np.int32), slots.astype(np.int32), shown), options))
    return made


def served(model: LoadedModel, mesh: Mesh) -> list[list[int]]:
    """The answers in the slots of an engine, half of them drawn; as many join at once as may."""
    batch = SlotBatch(model, 8, 128, LIMITS.stop_ids, 16, mesh)
    answers: list[list[int]] = []
    waiting = requests(12)
    while waiting:
        joining, waiting = waiting[: batch.rows], waiting[batch.rows :]
        assert len({batch.width(request) for request in joining}) == 1
        options = [
            AnswerOptions(9, temperature=0.8 * (int(str(request.key)) % 2), top_p=0.9, seed=int(str(request.key)))
            for request in joining
        ]
        batch.put(range(len(joining)), joining, options)
        batch.advance(8)
        for slot, new in batch.read(dict.fromkeys(range(len(joining)), 0)):
            assert new.ended
            answers.append(new.ids)
            batch.release(slot)
    return answers


def main() -> None:
    distributed.initialize()
    params = qwen_vl.init_params(MODEL, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)
    params = jax.device_get(params)
    by_mesh = {}
    encoded = {}
    beams_by_mesh = {}
    scores_by_mesh = {}
    computed = {}
    served_by_mesh = {}
    for sizes in MESHES if jax.process_count() == 1 else [sizes for sizes in MESHES if np.prod(sizes) == 8]:
        devices = np.asarray(jax.devices()[: int(np.prod(sizes))], dtype=object).reshape(sizes)
        mesh = Mesh(devices, AXES)
        model = LoadedModel(jax.device_put(params, param_shardings(params, mesh)), MODEL, COMPUTE)
        generator = Generator(model, 8, mesh)
        answers = {int(str(key)): ids for key, ids in generator.generate(requests(22), LIMITS)}
        by_mesh[str(sizes)] = [answers[number] for number in range(22)]
        encoded[str(sizes)] = generator.encoded
        if jax.process_count() == 1:
            served_by_mesh[str(sizes)] = served(model, mesh)
        searched = {int(str(key)): beams for key, beams in generator.search(requests(11), LIMITS, BeamSearch(3))}
        without_ntk = dataclasses.replace(MODEL.decoder, train_length=256)
        scorer = OptionScorer(
            dataclasses.replace(model, config=dataclasses.replace(MODEL, decoder=without_ntk)), 8, mesh
        )
        scores_by_mesh[str(sizes)] = [each.scores for each in scorer.score(choices(11))]
        computed[str(sizes)] = scorer.computed
        beams_by_mesh[str(sizes)] = [[beam.ids for beam in searched[number]] for number in range(11)]
    facts = {"answers": by_mesh, "encoded": encoded, "beams": beams_by_mesh, "served": served_by_mesh}
    json.dump(facts | {"scores": scores_by_mesh, "computed": computed}, sys.stdout)


if __name__ == "__main__":
    main()
