"""A release as a checkpoint of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.checkpoint.starting_point import find_starting_point
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import to_torch
from qwenvl_jax.conversion.imported_runs import run_of, with_imported
from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.open_model import open_model
from tests.evaluation.samples import eval_config, rows_of


def test_a_release_is_imported_once_and_answers_as_its_run(
    config: Config, checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = to_torch.release(params, config, tmp_path / "release")
    asked = BenchmarkConfig("vqa", str(tiny_data / "vqa"), "train", 5, 4, 1)
    of_run = eval_config(config, checkpoint, tmp_path / "run", asked)
    assert with_imported(of_run) == of_run
    of_release = with_imported(eval_config(config, Path(str(release)), tmp_path / "imported", asked))
    (item,) = of_release.checkpoints
    assert item.workdir.startswith(str(tmp_path / "imported/imported/a-"))
    written = (Path(item.workdir) / "lineage.json").stat().st_mtime_ns
    assert with_imported(eval_config(config, Path(str(release)), tmp_path / "imported", asked)) == of_release
    assert (Path(item.workdir) / "lineage.json").stat().st_mtime_ns == written
    assert sweep(of_release) == sweep(of_run)
    assert rows_of(tmp_path / "imported") == rows_of(tmp_path / "run")

    changed = json.loads((Path(str(release)) / "config.json").read_text()) | {"note": "of another release"}
    (Path(str(release)) / "config.json").write_text(json.dumps(changed))
    (other,) = with_imported(
        dataclasses.replace(of_release, checkpoints=(dataclasses.replace(item, workdir=str(release)),))
    ).checkpoints
    assert other.workdir != item.workdir


def test_commands_that_start_at_once_import_a_release_once(
    config: Config, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = str(to_torch.release(params, config, tmp_path / "release"))
    capsys.readouterr()
    imported = epath.Path(tmp_path / "imported")
    with ThreadPoolExecutor(3) as commands:
        (run,) = {future.result() for future in [commands.submit(run_of, release, imported, "a") for _ in range(3)]}
    said = capsys.readouterr().out
    assert said.count(f"importing {release}") == 1, said
    assert said.count(f"another command imports {release} to {run}; waiting for it") == 2, said
    (Path(run) / "lineage.json").unlink()  # as if it had been killed before its end
    (Path(run) / "frozen" / "half").write_bytes(b"")
    assert run_of(release, imported, "a") == run
    assert find_starting_point(run, None).step == 0 and not (Path(run) / "frozen" / "half").exists()
    with pytest.raises(UserError, match="is a release, whose only step is 0, not 7; leave the step out"):
        run_of(release, imported, "b", 7)  # before it is imported
    assert [path.name for path in imported.iterdir()] == [Path(run).name]
    assert find_starting_point(run, 0) == find_starting_point(run, -1)
    with pytest.raises(UserError, match="holds imported weights, whose only step is 0, not 7; leave the step out"):
        find_starting_point(run, 7)


def test_a_named_step_counts_for_the_towers_that_were_trained(config: Config, checkpoint: Path, tmp_path: Path) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = str(to_torch.release(params, config, tmp_path / "release"))
    imported = run_of(release, epath.Path(tmp_path / "imported"), "a")
    step = find_starting_point(checkpoint).step
    init = dataclasses.replace(
        config.init, stage="", vit=imported, resampler=imported, decoder=str(checkpoint), step=step, partial=True
    )
    starts = restore.check_init(dataclasses.replace(config, init=init))
    assert {tower: start and start.step for tower, start in starts.items()} == {
        "vit": 0, "resampler": 0, "decoder": step
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"quantization_config": {"quant_method": "gptq"}}}, "is quantised (gptq)"),
        ({"config.json": {"quantization_config": {"quant_method": "awq"}}}, "is quantised (awq)"),
        ({"config.json": {}, "quantize_config.json": {"bits": 4}}, "is quantised (int4)"),
        ({"adapter_config.json": {"base_model_name_or_path": "Qwen-VL-Chat"}}, "an adapter (LoRA) of Qwen-VL-Chat"),
        ({"config.json": {"hidden_size": 8}}, "not the config of a Qwen-VL release"),
        ({"config.json": {"train": {}, "model": {}}}, "not that of a run"),
    ],
)
def test_folders_of_other_kinds_are_refused_by_all_who_answer(
    tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        open_model(str(folder), None, tmp_path / "imported")
    assert words in str(refused.value)
    assert not (tmp_path / "imported").exists()
