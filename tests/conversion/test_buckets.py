"""Release, import and verification where every path lies on an object store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwenvl_jax.checkpoint import lineage, restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import from_torch, manifest, parity, to_torch
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def contents(folder: Any) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.path(folder) / name) for name in storage.names(folder)}


@pytest.mark.parametrize("form", to_torch.FORMATS)
def test_a_release_on_a_bucket_is_the_one_on_disk(
    params: dict[str, Any], config: Config, tokenizer: Any, gcs: str, tmp_path: Path, form: str
) -> None:
    options: dict[str, Any] = {"file_format": form, "shard_bytes": 60_000}
    local = to_torch.release(params, config, tmp_path / "release", **options)
    remote = to_torch.release(params, config, f"{gcs}/a/release", **options)
    assert contents(remote) == contents(local)
    assert storage.names(f"{gcs}/a") == ["release"]
    from_torch.import_release(remote, f"{gcs}/run")
    loaded, _, _ = restore.load_params(f"{gcs}/run")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert lineage.read_lineage(f"{gcs}/run")["components"]["vit"]["from"]["path"] == f"{gcs}/a/release"
    if form == "bin":
        return
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)[:2]
    report = parity.verify(params, config, remote, tokenizer, prompts, max_new_tokens=2)
    assert report["passed"] and parity.PARITY in storage.names(remote)
    again = to_torch.release(params, config, remote, dtype="bfloat16")  # replaces it, parity.json included
    assert manifest.verify_manifest(again) and parity.PARITY not in storage.names(again)


def test_a_release_that_was_cut_short_says_so_and_can_be_made_again(
    params: dict[str, Any], config: Config, gcs: str
) -> None:
    folder = f"{gcs}/release"
    whole = contents(to_torch.release(params, config, folder))
    broken = {**params, "vit": {**params["vit"], "proj": _Breaking(params["vit"]["proj"])}}
    with pytest.raises(KeyboardInterrupt):
        to_torch.release(broken, config, folder)
    left = storage.names(folder)
    assert manifest.UNFINISHED in left and manifest.MANIFEST not in left and len(left) > 5
    for read in (manifest.verify_manifest, from_torch.open_release):
        with pytest.raises(UserError, match="is a release that was not finished"):
            read(folder)
    with pytest.raises(UserError, match="not finished"):
        from_torch.import_towers(config, f"{gcs}/run", decoder=folder)
    assert contents(to_torch.release(params, config, folder)) == whole
    storage.write_bytes(storage.path(gcs) / "other" / "notes.txt", b"")
    with pytest.raises(UserError, match="exists and is not a release"):
        to_torch.release(params, config, f"{gcs}/other")


class _Breaking:
    """An array at which somebody presses Ctrl-C."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, *arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_the_commands_take_buckets_and_homes(released: Path, gcs: str, gcs_environment: Any, tmp_path: Path) -> None:
    """Import and release with every path on a bucket, then verification; then the same with `~`."""
    for name in storage.names(released):
        storage.write_bytes(storage.path(gcs) / "in" / name, storage.read_bytes(released / name))

    def convert(*arguments: Any) -> Any:
        command = [sys.executable, "-m", "qwenvl_jax.convert", *arguments]
        environment = {**gcs_environment, "HOME": str(tmp_path)}
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr[-2000:]
        return run.stdout

    for folder in (gcs, "~/work"):
        convert("import", f"--release={gcs}/in", f"--workdir={folder}/run")
        convert("release", f"--workdir={folder}/run", f"--output={folder}/out", "--noparity")
        assert "passed" in convert("verify", f"--release={folder}/out", f"--workdir={folder}/run")
    assert sorted(os.listdir(tmp_path / "work")) == ["out", "run"]
    for name in set(storage.names(f"{gcs}/out")) - {parity.PARITY}:
        assert storage.read_bytes(storage.path(gcs) / "out" / name) == (tmp_path / "work/out" / name).read_bytes()
