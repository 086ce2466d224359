"""The script that disturbs a run, with four of its faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import chaos

FAULTS = {"SIGKILL", "flipped byte", "bucket 503", "killed decoder"}


@pytest.mark.slow
def test_a_run_that_is_disturbed_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    options = ("--faults=4", "--checkpoint_every=3", "--outage=5", f"--only={','.join(FAULTS)}")
    with pytest.raises(SystemExit) as end:
        chaos.main([*options, f"--scratch={tmp_path / 'scratch'}", f"--json={tmp_path / 'figures.json'}"])
    assert end.value.code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {event["fault"] for event in figures["events"]} == FAULTS
    assert figures["restarts"] >= 2 and figures["steps lost, worst"] > 0
    assert figures["arrays"] > 100 and figures["arrays that differ"] == 0 and figures["same metrics"]
