"""What is measured while a stage trains: the right figures, and a training that does not notice."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.in_training import BenchmarkObserver
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.held_out import HeldOutLoss
from qwenvl_jax.training.loop import train
from qwenvl_jax.training.state import State
from tests.checkpoint.saved_run import assert_same_run
from tests.support import tiny_run


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny records, a third of them held out."""
    folder = tmp_path_factory.mktemp("split")
    for task in ("caption", "vqa", "text"):
        reader = RecordReader(tiny_data / task)
        records = [reader[index] for index in range(len(reader))]
        write_records(folder / task, {"train": records[20:], "heldout": records[:20]}, name=task)
    (folder / "tiny.model").write_bytes((tiny_data / "tiny.model").read_bytes())
    return folder


def config_of(data: Path, every: int = 0, **changes: object) -> Config:
    settings = {"steps": 6, "checkpoint_every": 2, "log_every": 2}
    observed = {"every": every, "split": "heldout", "batches": 2}
    values = {f"train__{key}": value for key, value in settings.items()}
    return tiny_run.make_config(
        data, **(values | {f"evaluation__{key}": value for key, value in observed.items()} | changes)
    )


def test_the_held_out_loss_is_that_of_its_batches(data: Path) -> None:
    config = config_of(data, 2)
    tokenizer = load_tokenizer(config.tokenizer)
    params = qwen_vl.init_params(config.model, jax.random.key(0))
    state = State(np.zeros((), np.int32), params, {}, None)
    mesh = make_mesh(config.mesh)
    figures = HeldOutLoss(config, tokenizer, mesh)(0, state)
    assert figures == HeldOutLoss(config, tokenizer, mesh)(4, state)  # the same batches again

    losses: dict[str, list[float]] = {source.name: [] for source in config.data.mixture}
    alike = tuple(dataclasses.replace(source, weight=1.0) for source in config.data.mixture)
    equal = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=alike))
    with make_loader(equal, tokenizer, split="heldout") as loader:
        for _ in range(config.evaluation.batches):
            batch = next(loader)
            for number in range(len(batch.tokens)):
                micro = jax.tree.map(lambda array, number=number: array[number], batch)
                hidden = qwen_vl.forward(
                    params,
                    config.model,
                    config.compute,
                    tokens_BL=micro.tokens,
                    segment_ids_BL=micro.segment_ids,
                    positions_BL=micro.positions,
                    image_slot_BL=micro.image_slot,
                    images_IHWC=micro.images,
                    image_groups=config.data.groups,
                )
                logits = np.asarray(qwen_vl.logits(params, config.model, config.compute, hidden), np.float64)
                shifted = logits - logits.max(-1, keepdims=True)
                chosen = np.take_along_axis(shifted, micro.targets[..., None], -1)[..., 0]
                nats = np.log(np.exp(shifted).sum(-1)) - chosen
                for source, name in enumerate(losses):
                    losses[name] += nats[(micro.sources == source) & (micro.loss_mask > 0)].tolist()
    every = [nats for each in losses.values() for nats in each]
    assert figures["loss"] == pytest.approx(np.mean(every), rel=1e-5)
    for name, each in losses.items():
        assert each and figures[f"loss_by_source/{name}"] == pytest.approx(np.mean(each), rel=1e-5)


def test_training_goes_on_as_without_and_answers_are_those_of_a_sweep(data: Path, tmp_path: Path) -> None:
    assert train(config_of(data, 0), tmp_path / "without") == 6
    config = config_of(data, 2)
    asked = tuple(BenchmarkConfig(name, str(data / name), "heldout", 7, 6, 1) for name in ("vqa", "caption"))
    checkpoint = CheckpointConfig("last", str(tmp_path / "with"), config.data.image_size, 6)
    settings = EvalConfig((checkpoint,), config.tokenizer, asked, 3, "training", str(tmp_path / "sweep"))
    observer = functools.partial(BenchmarkObserver, settings, tmp_path / "with")
    assert train(config, tmp_path / "with", [observer]) == 6
    assert_same_run(tmp_path / "without", tmp_path / "with", 6)
    assert not (tmp_path / "without/evaluations.jsonl").exists()

    lines = [json.loads(line) for line in (tmp_path / "with/evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    scores = sweep(settings)["last"]
    assert {key: value for key, value in lines[-1].items() if key in scores} == scores
    for item in asked:
        in_training = (tmp_path / f"with/answers/00000006/{item.label}.jsonl").read_text()
        assert in_training == (tmp_path / f"sweep/predictions/last/{item.label}.jsonl").read_text()


def test_the_loss_of_other_files_and_of_a_part_of_one(data: Path, tmp_path: Path) -> None:
    talks = [{"conversations": [_says("user", f"Say {n}."), _says("assistant", f"It is {n}.")]} for n in range(40)]
    for name, lines in (("train", talks), ("other", talks[:9])):
        (tmp_path / f"{name}.json").write_text(json.dumps(lines))
    source = {"name": "talk", "task": "dialogue", "records": str(tmp_path / "train.json"), "weight": 1.0}
    settings: dict[str, Any] = {"evaluation__batches": 1, "data__mixture": (source,), "data__sequence_length": 96}

    with pytest.raises(UserError, match="has no splits, so all of it is trained on"):
        train(config_of(data, 3, **settings), tmp_path / "run")

    (tmp_path / "link.json").symlink_to(tmp_path / "train.json")
    for name in ("train.json", "link.json", "../" + tmp_path.name + "/train.json"):
        same = source | {"name": "same", "records": f"{tmp_path}/{name}"}
        with pytest.raises(UserError, match=r"'same' of config\.evaluation\.mixture .* is trained on"):
            train(config_of(data, 3, **settings, evaluation__mixture=(same,)), tmp_path / "run")

    part = config_of(data, 3, **settings, data__heldout_share=0.4)
    other = source | {"name": "other", "records": str(tmp_path / "other.json")}
    file = config_of(data, 3, **settings, evaluation__mixture=(other,))
    tokenizer = load_tokenizer(part.tokenizer)
    state = State(np.zeros((), np.int32), qwen_vl.init_params(part.model, jax.random.key(0)), {}, None)
    for config, name in ((part, "talk"), (file, "other")):
        figures = HeldOutLoss(config, tokenizer, make_mesh(config.mesh))(0, state)
        assert figures["loss"] == figures[f"loss_by_source/{name}"] == pytest.approx(np.log(420), abs=1.5)

    # What is held out is not trained on.
    with make_loader(part, tokenizer) as trained, make_loader(part, tokenizer, split="heldout") as held_out:
        assert trained.samples["talk"] + held_out.samples["talk"] == 40
        assert trained.facts() != held_out.facts()


def _says(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def test_what_cannot_be_measured_is_refused_before_the_first_step(data: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'heldout'"):
        train(config_of(tiny_data, 2), tmp_path / "run")
    with pytest.raises(UserError, match="is trained on"):
        config_of(data, 2, evaluation__split="train")
    source = {"name": "talk", "task": "dialogue", "records": "train.json", "weight": 1.0}
    with pytest.raises(UserError, match=r"measured only if config\.evaluation\.split"):
        config_of(data, 2, evaluation__split="", evaluation__mixture=(source,))
