"""Parameters saved, loaded and handed from stage to stage; what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.imported import save_params
from qwenvl_jax.checkpoint.restore import check_init, initial_params, load_params
from qwenvl_jax.checkpoint.steps import latest_step
from qwenvl_jax.config import TOWERS, Config
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import component_of, flatten, merge
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from tests.checkpoint.saved_run import write_run
from tests.support import tiny_run

STAGE_1 = ("vit", "vit_head", "resampler")


def test_trained_and_frozen_come_back_together(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config(train__trainable=STAGE_1, train__stage="pretrain")
    write_run(tmp_path / "run", config, params, steps=(3, 6))
    loaded, stored_config, step = load_params(tmp_path / "run")
    assert (stored_config, step) == (config, 6)
    for path, leaf in flatten(params).items():
        trained = component_of(path) in STAGE_1
        np.testing.assert_array_equal(flatten(loaded)[path], leaf + 6 if trained else leaf)
    older, _, _ = load_params(tmp_path / "run", step=3, towers=("vit",))
    assert set(older) == {"vit"}
    np.testing.assert_array_equal(older["vit"]["proj"], params["vit"]["proj"] + 3)
    with pytest.raises(UserError, match=r"no checkpoint of step 4; its newest is 6 \(there are 3, 6\)"):
        load_params(tmp_path / "run", step=4)


def test_imported_weights(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config(compute__frozen_dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    params["decoder"]["ln_f"]["scale"] = params["decoder"]["ln_f"]["scale"].astype(jnp.float32)
    save_params(tmp_path / "import", params, config)
    loaded, _, step = load_params(tmp_path / "import")
    assert step == 0
    for leaf, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert leaf.dtype == other.dtype  # every leaf in its own
        np.testing.assert_array_equal(leaf, other)
    with pytest.raises(UserError, match="already holds a run"):
        save_params(tmp_path / "import", params, config)
    with_init = tiny_run.make_config(init__stage="import", init__vit=str(tmp_path / "import"))
    assert check_init(with_init)["vit"] is not None


def test_a_run_starts_from_several_checkpoints(tmp_path: Path, params: dict[str, Any]) -> None:
    old = tiny_run.make_config(train__trainable=("decoder",), train__stage="text", train__steps=5)
    write_run(tmp_path / "text", old, params, steps=(3, 5))
    config = tiny_run.make_config(train__trainable=STAGE_1, init__decoder=str(tmp_path / "text"))
    points = check_init(config)
    assert points["vit"] is None and points["decoder"] is not None and points["decoder"].step == 5
    abstract = abstract_state(config, make_mesh(config.mesh))
    start = initial_params(config, points, merge(abstract.trainable, abstract.frozen))
    np.testing.assert_array_equal(start["decoder"]["lm_head"], params["decoder"]["lm_head"] + 5)
    fresh = qwen_vl.init_params(config.model, jax.random.key(config.train.seed))
    np.testing.assert_array_equal(
        start["vit"]["blocks"]["mlp"]["up"]["kernel"], fresh["vit"]["blocks"]["mlp"]["up"]["kernel"]
    )

    origins = {
        tower: None if point is None else lineage.origin_of(point.workdir, point.step, tower)
        for tower, point in points.items()
    }
    lineage.write(tmp_path / "next", config, origins)
    history = lineage.read_lineage(tmp_path / "next")["components"]
    assert history["vit"]["from"] == {"stage": "fresh", "seed": 0} and history["vit"]["trained"]
    assert history["decoder"]["from"]["stage"] == "text" and history["decoder"]["from"]["step"] == 5
    assert history["decoder"]["from"]["from"] == {"stage": "fresh", "seed": 0}
    assert not history["decoder"]["trained"] and history["decoder"]["from"]["trained"]


def test_what_chaining_refuses(tmp_path: Path, params: dict[str, Any]) -> None:
    old = tiny_run.make_config(train__stage="pretrain", train__steps=5)
    write_run(tmp_path / "run", old, params, steps=(5,))

    def config(**changes: Any) -> Config:
        return tiny_run.make_config(init__vit=str(tmp_path / "run"), **changes)

    assert check_init(config(init__stage="pretrain"))["vit"] is not None
    with pytest.raises(UserError, match=r"written by stage 'pretrain', but config.init.stage asks for 'text'"):
        check_init(config(init__stage="text"))
    other = dataclasses.replace(config().model, decoder=dataclasses.replace(config().model.decoder, layers=5))
    with pytest.raises(UserError, match=r"config.model.decoder.layers is 2 there and 5 here"):
        check_init(dataclasses.replace(config(), model=other))
    missing = tiny_run.make_config(init__resampler=str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match=r"config.init.resampler is .*nowhere, which does not exist; .*or import that model"
    ):
        check_init(missing)
    assert check_init(missing, missing_ok=True)["resampler"] is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is not the folder of a run"):
        check_init(tiny_run.make_config(init__vit=str(tmp_path / "empty")))
    lineage.write(tmp_path / "begun", old, dict.fromkeys(TOWERS))
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        check_init(tiny_run.make_config(init__vit=str(tmp_path / "begun")))


def test_resuming_with_another_config_names_the_key(tmp_path: Path) -> None:
    config = tiny_run.make_config()
    lineage.check_resumable(tmp_path, config)  # nothing there yet
    lineage.write(tmp_path, config, dict.fromkeys(TOWERS))
    lineage.check_resumable(tmp_path, config)
    lineage.check_resumable(tmp_path, tiny_run.make_config(train__log_every=1, mesh__fsdp=2))
    in_host_memory = tiny_run.make_config(optimizer__moments_memory="pinned_host")
    lineage.check_resumable(tmp_path, in_host_memory)
    lineage.check_resumable(tmp_path, tiny_run.make_config(compute__xla_options=("a=1",)))
    moved = tiny_run.make_config(Path("elsewhere"), init__vit="gs://bucket/stage1", init__step=7)
    lineage.check_resumable(tmp_path, moved)  # records and vocabulary are known by what they hold
    assert set(lineage.note_moves(tmp_path, moved, 5)) >= {"config.tokenizer.path", "config.data.mixture[2].records"}
    assert lineage.read_config(tmp_path) == moved and lineage.note_moves(tmp_path, config, 6)
    with pytest.raises(UserError, match=r"config.optimizer.clip_norm = 1.0, not 2.0"):
        lineage.check_resumable(tmp_path, tiny_run.make_config(optimizer__clip_norm=2.0))
    with pytest.raises(UserError, match=r"config.compute.frozen_dtype"):
        lineage.check_resumable(tmp_path, tiny_run.make_config(compute__frozen_dtype="bfloat16"))


def test_half_a_checkpoint_is_not_found(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config()
    write_run(tmp_path / "run", config, params, steps=(2,))
    cut = tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp"
    (cut / "params").mkdir(parents=True)
    assert latest_step(tmp_path / "run") == 2
    assert load_params(tmp_path / "run")[2] == 2


def test_a_missing_frozen_tree_is_said_in_one_sentence(tmp_path: Path, params: dict[str, Any]) -> None:
    import shutil

    write_run(tmp_path / "run", tiny_run.make_config(), params)
    shutil.rmtree(tmp_path / "run" / "frozen")
    with pytest.raises(UserError, match="frozen is missing"):
        load_params(tmp_path / "run")


def test_a_run_from_before_a_key_was_added_is_read_and_continued(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config()
    write_run(tmp_path / "run", config, params)
    path = tmp_path / "run" / "config.json"
    older = json.loads(path.read_text())
    del older["optimizer"]["first_moment_dtype"], older["model"]["vit"]["window"], older["model"]["vit"]["global_every"]
    del older["optimizer"]["moments_memory"]
    path.write_text(json.dumps(older))
    assert load_params(tmp_path / "run")[1] == config
    lineage.check_resumable(tmp_path / "run", config)
    changed = tiny_run.make_config(optimizer__first_moment_dtype="bfloat16")
    with pytest.raises(UserError, match="first_moment_dtype = 'float32'"):
        lineage.check_resumable(tmp_path / "run", changed)
