"""A released directory as a checkpoint of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import to_torch
from qwenvl_jax.conversion.from_torch import import_release
from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.evaluation.released import with_imported
from qwenvl_jax.evaluation.sweep import sweep
from tests.evaluation.samples import eval_config, rows_of


def test_a_release_is_imported_once_and_answers_as_its_run(
    config: Config, checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = to_torch.release(params, config, tmp_path / "release")
    asked = BenchmarkConfig("vqa", str(tiny_data / "vqa"), "train", 5, 4, 1)
    of_run = eval_config(config, checkpoint, tmp_path / "run", asked)
    assert with_imported(of_run, import_release) == of_run
    of_release = with_imported(eval_config(config, Path(str(release)), tmp_path / "imported", asked), import_release)
    (item,) = of_release.checkpoints
    assert item.workdir.startswith(str(tmp_path / "imported/imported/a-"))
    written = (Path(item.workdir) / "lineage.json").stat().st_mtime_ns
    assert (
        with_imported(eval_config(config, Path(str(release)), tmp_path / "imported", asked), import_release)
        == of_release
    )
    assert (Path(item.workdir) / "lineage.json").stat().st_mtime_ns == written
    assert sweep(of_release) == sweep(of_run)
    assert rows_of(tmp_path / "imported") == rows_of(tmp_path / "run")

    changed = json.loads((Path(str(release)) / "config.json").read_text()) | {"note": "of another release"}
    (Path(str(release)) / "config.json").write_text(json.dumps(changed))
    (other,) = with_imported(
        dataclasses.replace(of_release, checkpoints=(dataclasses.replace(item, workdir=str(release)),)), import_release
    ).checkpoints
    assert other.workdir != item.workdir
