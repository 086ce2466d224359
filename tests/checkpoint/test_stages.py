"""From stage to stage and from bucket to bucket: what a start asks for, what a run notes, what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.imported import save_params
from qwenvl_jax.checkpoint.manager import restore_frozen, save_frozen
from qwenvl_jax.checkpoint.restore import check_init, load_params
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.config import TOWERS, Config
from qwenvl_jax.data.tokenizer import vocabulary_digest
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.params import flatten, split
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.loop import begin, train
from qwenvl_jax.training.start import find_start
from qwenvl_jax.training.state import abstract_state
from tests.checkpoint.saved_run import write_run
from tests.support import tiny_run

FRESH = dict.fromkeys(TOWERS)


def test_an_unfinished_stage_is_taken_only_when_its_step_is_named(tmp_path: Path, params: dict[str, Any]) -> None:
    run = tmp_path / "run"
    write_run(run, tiny_run.make_config(train__steps=50), params, steps=(20, 30))
    later = tiny_run.make_config(init__vit=str(run))
    with pytest.raises(
        UserError, match=r"not finished: its newest checkpoint is of step 30 of 50.*--config.init.step=30"
    ):
        check_init(later)
    for step in (20, 30):
        source = check_init(tiny_run.make_config(init__vit=str(run), init__step=step))["vit"]
        assert source is not None and source.step == step
    with pytest.raises(UserError, match=r"no checkpoint of step 25; its newest is 30 \(there are 20, 30\)"):
        check_init(tiny_run.make_config(init__vit=str(run), init__step=25))


def test_a_decoder_goes_on_with_the_vocabulary_it_was_trained_with(
    tmp_path: Path, tiny_data: Path, params: dict[str, Any]
) -> None:
    data = tmp_path / "moved"
    shutil.copytree(tiny_data, data)
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    texts = ["quite other words than those of the records", "written for another vocabulary"] * 30
    train_sentencepiece(texts, 330, other / "tiny.model")
    config = tiny_run.make_config(tiny_data, train__steps=5)
    run = tmp_path / "run"
    write_run(run, config, params, steps=(5,))
    old = tmp_path / "old"
    shutil.copytree(run, old)  # from before the vocabulary was noted
    lineage.write(run, config, FRESH, vocabulary=vocabulary_digest(config.tokenizer))

    def starts(data: Path, **changes: str) -> None:
        check_init(tiny_run.make_config(data, **changes))

    starts(data, init__decoder=str(run))
    with pytest.raises(
        UserError, match=r"was trained with another vocabulary \(.*tiny.model, sha256 .*\) than .*other/"
    ):
        starts(other, init__decoder=str(run))
    starts(other, init__vit=str(run))  # knows no tokens
    starts(other, init__decoder=str(old))
    with pytest.raises(UserError, match="does not exist"):
        starts(tmp_path / "nowhere", init__decoder=str(run))
    check_init(tiny_run.make_config(tmp_path / "nowhere", init__decoder=str(run)), missing_ok=True)  # only planned


def test_imports_are_no_fresh_weights_in_any_history(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config()
    origin = {"path": "gs://bucket/Qwen-VL-Chat", "sha256": "ab12"}
    save_params(tmp_path / "import", {"vit": params["vit"], "resampler": params["resampler"]}, config, source=origin)
    history = lineage.read_lineage(tmp_path / "import")["components"]
    assert set(history) == {"vit", "vit_head", "resampler"}  # no decoder is there, and none is claimed
    assert history["vit"]["from"] == {"stage": "import", **origin}
    noted = lineage.origin_of(tmp_path / "import", 0, "resampler")
    assert noted["stage"] == "import" and noted["from"] == {"stage": "import", **origin}
    save_params(tmp_path / "plain", params, config)
    assert lineage.read_lineage(tmp_path / "plain")["components"]["decoder"]["from"] == {"stage": "import"}


@pytest.mark.slow
def test_a_run_follows_its_data_its_vocabulary_and_its_predecessors(
    tmp_path: Path, tiny_data: Path, params: dict[str, Any], capsys: Any
) -> None:
    before = tmp_path / "text"
    write_run(before, tiny_run.make_config(train__steps=5), params, steps=(5,))

    def config(data: Path, init: Path) -> Config:
        return tiny_run.make_config(data, init__vit=str(init), train__steps=6, train__checkpoint_every=3)

    run = tmp_path / "run"
    train(config(tiny_data, before), run)
    shutil.rmtree(run / "checkpoints" / "6")
    old = json.loads((run / "config.json").read_text())
    data, init = tmp_path / "elsewhere", tmp_path / "text_moved"
    shutil.copytree(tiny_data, data)
    before.rename(init)
    capsys.readouterr()
    assert train(config(data, init), run) == 6
    said = capsys.readouterr().out
    assert "config.data.mixture[0].records has moved" in said and "config.init.vit has moved" in said
    new = json.loads((run / "config.json").read_text())
    assert new["tokenizer"]["path"] == str(data / "tiny.model")  # chat and evaluation find it
    assert new["data"]["mixture"][1]["records"] == str(data / "vqa") and new["init"]["vit"] == str(init)
    moves = {move["key"]: move for move in lineage.read_lineage(run)["moves"]}
    assert moves["config.tokenizer.path"] == {
        "key": "config.tokenizer.path",
        "from": old["tokenizer"]["path"],
        "to": str(data / "tiny.model"),
        "after_step": 3,
    }
    assert len(moves) == 5 and lineage.note_moves(run, config(data, init), 6) == []
    # Other records under the same name are another stream: the path may change, what lies there may not.
    shutil.rmtree(run / "checkpoints" / "6")
    other = tiny_run.write_data(tmp_path / "other", count=40)
    with pytest.raises(UserError, match=r"records|vocabulary"):
        train(config(other, init), run)
    assert finished_steps(run) == [3] and json.loads((run / "config.json").read_text()) == new


def test_a_start_that_was_cut_short_is_begun_anew_and_nothing_of_others_is_touched(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    trainable = ("vit", "vit_head")
    config = tiny_run.make_config(train__trainable=trainable)
    run = epath.Path(tmp_path) / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert find_start(config, run)[0] is None
    lineage.begin(run, config)  # killed after the config
    assert find_start(config, run)[0] is None
    save_frozen(run, split(params, trainable)[1])  # killed after the frozen weights
    other = tiny_run.make_config(train__trainable=trainable, optimizer__clip_norm=2.0)
    assert find_start(other, run)[0] is None  # nothing has been trained yet: another config may begin
    _, state, _ = begin(other, run, FRESH, abstract_state(other))
    stored = flatten(
        restore_frozen(run, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.frozen))
    )
    for path, leaf in flatten(state.frozen).items():
        assert (stored[path] == leaf).all()
    assert lineage.read_config(run) == other and (run / "notes.txt").read_text() == "mine"
    assert set(storage.names(run)) == {"config.json", "frozen", "lineage.json", "notes.txt"}
    with pytest.raises(UserError, match="clip_norm"):  # it has begun
        find_start(config, run)


@pytest.mark.parametrize(
    "name, content",
    [
        ("frozen", None),
        ("checkpoints", None),
        ("metrics.jsonl", "mine"),
        ("events", None),
        ("config.json", '{"architectures": []}'),
    ],
)
def test_a_folder_with_files_of_somebody_else_is_refused(
    tmp_path: Path, params: dict[str, Any], name: str, content: str | None
) -> None:
    config = tiny_run.make_config()
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is None:
        (folder / name).mkdir()
        (folder / name / "theirs").write_text("x")
    else:
        (folder / name).write_text(content)
    before = sorted((str(path), path.is_file() and path.read_text()) for path in folder.rglob("*"))
    for attempt in (
        lambda: find_start(config, epath.Path(folder)),
        lambda: begin(config, epath.Path(folder), FRESH, abstract_state(config)),
        lambda: save_params(folder, params, config),
    ):
        with pytest.raises(UserError, match=f"{name} is (there, but no run|not that of a run)"):
            attempt()
    assert sorted((str(path), path.is_file() and path.read_text()) for path in folder.rglob("*")) == before


def test_a_file_for_a_folder_and_an_import_that_was_killed(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; name a folder"):
        find_start(config, epath.Path(tmp_path / "file"))
    lineage.begin(tmp_path / "import", config)
    save_frozen(tmp_path / "import", params)  # killed before the lineage: not found, and written anew
    with pytest.raises(UserError):
        load_params(tmp_path / "import")
    save_params(tmp_path / "import", params, config)
    assert load_params(tmp_path / "import")[2] == 0


def test_a_run_whose_checkpoints_are_all_set_aside_is_not_begun_anew(tmp_path: Path, params: dict[str, Any]) -> None:
    config = tiny_run.make_config(train__steps=9)
    write_run(tmp_path / "run", config, params)
    (tmp_path / "run/checkpoints/3").rename(tmp_path / "run/checkpoints/3.damaged")
    with pytest.raises(UserError, match=r"all checkpoints of .*run were damaged and are set aside \(3.damaged\)"):
        find_start(config, epath.Path(tmp_path / "run"))


def test_init_import_and_parameters_on_gs(gcs: str, params: dict[str, Any]) -> None:
    run, imported = epath.Path(gcs) / "runs/stage1", epath.Path(gcs) / "import"
    config = tiny_run.make_config(train__steps=5, train__trainable=("vit", "vit_head", "resampler"))
    write_run(run, config, params, steps=(3, 5))
    loaded, _, step = load_params(run)
    assert step == 5 and (loaded["vit"]["proj"] == params["vit"]["proj"] + 5).all()
    save_params(imported, params, config, source={"path": "x"})
    later = tiny_run.make_config(init__vit=str(run), init__resampler=str(run), init__decoder=str(imported))
    sources = check_init(later)
    assert sources["vit"] is not None and sources["vit"].step == 5
    assert sources["decoder"] is not None and sources["decoder"].stage == "import"
    with pytest.raises(UserError, match="already holds a run"):
        save_params(imported, params, config)
    with pytest.raises(UserError, match=r"gs://.*/nowhere, which does not exist"):
        check_init(tiny_run.make_config(init__vit=f"{gcs}/nowhere"))
