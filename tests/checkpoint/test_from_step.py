"""A run goes back to an older checkpoint on request; nothing that came later is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from qwenvl_jax.checkpoint import lineage, rewind
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.config import TOWERS
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.loop import train
from tests.checkpoint.saved_run import MOMENTS, TREE, assert_is, assert_same_run, lines, save
from tests.support import tiny_run


@pytest.fixture(params=["disk", "gs"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> epath.Path:
    """A run with checkpoints of steps 2, 4 and 6 and a line of metrics for each."""
    run = epath.Path(tmp_path if request.param == "disk" else request.getfixturevalue("gcs")) / "run"
    save(run, 2, 4, 6)
    lineage.write(run, tiny_run.make_config(), dict.fromkeys(TOWERS))
    storage.write_bytes(run / "metrics.jsonl", b"".join(b'{"step": %d}\n' % step for step in (2, 4, 6)))
    return run


def test_what_came_later_is_kept_under_other_names(run: epath.Path, capsys: Any) -> None:
    assert rewind.wanted(run, None) is None
    assert rewind.wanted(run, 2) == 2
    assert_is(2, rewind.state_of(run, 2, TREE, MOMENTS))
    assert "going back to step 2: what came later is kept as 4.later, 6.later, metrics.jsonl.later" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    assert storage.names(run / "checkpoints") == ["2", "4.later", "6.later"]
    assert storage.read_bytes(run / "metrics.jsonl.later").count(b"\n") == 3
    assert lineage.read_lineage(run)["returns"] == [{"to": 2, "moved": ["4.later", "6.later"]}]

    save(run, 4)  # it trains on, is killed, and the scheduler repeats the command
    assert rewind.wanted(run, 2) is None
    assert "has gone back to step 2 before and continues from its newest" in capsys.readouterr().out.replace("\n", " ")
    assert rewind.wanted(run, 4) == 4
    assert_is(4, rewind.state_of(run, 4, TREE, MOMENTS))
    assert rewind.wanted(run, 2) == 2
    assert_is(2, rewind.state_of(run, 2, TREE, MOMENTS))
    assert storage.names(run / "checkpoints") == ["2", "4.later", "4.later-2", "6.later"]


def test_a_missing_or_damaged_step_is_refused_and_nothing_moved(run: epath.Path) -> None:
    with pytest.raises(UserError, match=r"--from_step=3: .* holds no checkpoint of that step \(there are 2, 4, 6\)"):
        rewind.wanted(run, 3)
    with pytest.raises(UserError, match="has no run that --from_step could go back in"):
        rewind.wanted(run / "elsewhere", 2)
    payload = bytearray(storage.read_bytes(run / "checkpoints/4/progress/metadata"))
    payload[20] ^= 1
    storage.write_bytes(run / "checkpoints/4/progress/metadata", bytes(payload))
    with pytest.raises(UserError, match=r"--from_step=4: that checkpoint of .* is damaged \(progress/metadata is not"):
        rewind.state_of(run, 4, TREE, MOMENTS)
    assert storage.names(run / "checkpoints") == ["2", "4", "6"] and not storage.exists(run / "metrics.jsonl.later")


@pytest.mark.slow
def test_the_steps_that_are_trained_again_are_the_same(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_run.make_config(
        tiny_data, train__steps=6, train__checkpoint_every=2, train__log_every=2, optimizer__warmup_steps=1
    )
    train(config, tmp_path / "whole")
    train(config, tmp_path / "back")
    assert train(config, tmp_path / "back", from_step=2) == 6
    assert_same_run(tmp_path / "whole", tmp_path / "back", 6)
    assert finished_steps(tmp_path / "back") == [2, 4, 6]
    kept = [json.loads(line) for line in (tmp_path / "back/metrics.jsonl.later").read_text().splitlines()]
    assert [line["step"] for line in kept] == [line["step"] for line in lines(tmp_path / "back")] == [2, 4, 6]
    assert train(config, tmp_path / "back", from_step=2) == 6  # done: the finished run is left alone
