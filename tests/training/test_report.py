"""report.html: of a run that goes on, has ended or was killed, and while it trains."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.config import TOWERS
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.goodput import account_of
from qwenvl_jax.training.report.curves import averaged, rates
from qwenvl_jax.training.report.facts import read_facts
from qwenvl_jax.training.report.live import reported, write_report
from qwenvl_jax.training.report.page import page, status
from qwenvl_jax.training.report.timeline import columns, shares, timeline
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]
BEGAN = 1_795_600_000.0

LEDGER: list[dict] = [
    {"event": "start", "at": BEGAN, "step": 0, "host": "a", "pid": 1, "processes": 2, "devices": "8 x TPU v5p"},
    {"from": BEGAN, "to": BEGAN + 60, "steps": [0, 0], "seconds": {"initialisation": 40, "compilation": 20}},
    {"from": BEGAN + 60, "to": BEGAN + 160, "steps": [0, 10], "seconds": {"step": 90, "data": 10}},
    {"event": "start", "at": BEGAN + 200, "step": 8, "host": "b", "pid": 2, "processes": 1, "devices": "4 x TPU v5p"},
    {"from": BEGAN + 200, "to": BEGAN + 300, "steps": [8, 20], "seconds": {"step": 100}},
    {"event": "end", "at": BEGAN + 300, "code": 42, "reason": "PeerError: process 1 <is> gone"},
]


def log_line(step: int) -> dict:
    tasks = ("caption", "vqa", "text")
    timing = {"seconds_per_step": 2.0, "tokens_per_second": 900.0, "images_per_second": 30.0, "data_wait_share": 0.02}
    data = {"seen": dict.fromkeys(tasks, 7 * step), "epochs": dict.fromkeys(tasks, 0.5), "tokens": 90 * step}
    losses = {task: 3.0 / step + number for number, task in enumerate(tasks)}
    taught = dict.fromkeys(tasks, 100.0)
    figures = {"loss": 3.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3, "loss_by_task": losses}
    return {"step": step, **figures, "supervised_by_source": taught, "data": data, "timing": timing | {"mfu": 0.4}}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """The folder of a run whose second start has ended with code 42 after step 20 of 24."""
    folder = tmp_path / "run"
    lineage.write(folder, tiny_run.make_config(), dict.fromkeys(TOWERS), vocabulary="abc")
    lines = {"metrics.jsonl": [log_line(step) for step in (5, 10, 15, 20)], "ledger.jsonl": LEDGER}
    lines["evaluations.jsonl"] = [{"step": step, "loss": 2.0, "loss_by_task/vqa": 1.0} for step in (10, 20)]
    for name, values in lines.items():
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    (folder / "checkpoints/8").mkdir(parents=True)
    (folder / "checkpoints/8/commit_success.txt").write_text("")
    (folder / "checkpoints/4.damaged").mkdir()
    return folder


def test_a_page_shows_the_run_and_needs_nothing_else(workdir: Path) -> None:
    facts = read_facts(workdir)
    html = page(facts, BEGAN + 400)
    assert status(facts, 0) == "20 of 24 steps. The last start ended with code 42: PeerError: process 1 <is> gone."
    for text in ("loss by task", "held out: loss", "norm of the gradients", "MFU, %", "lowest layer of the ViT"):
        assert text in html
    for text in ("42 RETRY", "killed, or lost", "&lt;is&gt; gone", "4.damaged", "8 x TPU v5p", "lost work", "0:00:40"):
        assert text in html
    assert "goodput 57.3%" in html  # 172 of 300 seconds: of the first start 8 of its 10 steps count
    assert not re.search(r'(src|href)="(?!#|data:)', html) and "<is>" not in html and "nan," not in html
    assert html.count("<section") == html.count("</section>") == 7


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lineage.begin(epath.Path(folder), tiny_run.make_config())
    html = page(read_facts(folder))
    assert "0 of 24 steps." in html and "not logged two lines" in html and "has no ledger" in html
    with pytest.raises(UserError, match="is not the folder of a run"):
        write_report(epath.Path(tmp_path))
    assert not (tmp_path / "report.html").exists()


# What a file may hold after somebody or something has written into it.
EVIL = "<script>alert(1)</script>"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([10**400, 1e308, -1e308, 1e38, math.nan, math.inf, EVIL]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([EVIL, "seen", "vqa"]), inner, max_size=2)
    ),
    max_leaves=4,
)
LINES = {
    "metrics.jsonl": [log_line(5), log_line(10)],
    "ledger.jsonl": LEDGER,
    "evaluations.jsonl": [{"step": 5, "loss": 2.0}],
}


def changed(value: Any, draw: st.DataObject) -> Any:
    """A JSON value, of which some parts are replaced by others."""
    if draw.draw(st.integers(0, 5)) == 0:
        return draw.draw(ANYTHING)
    if isinstance(value, dict):
        more = {EVIL: draw.draw(ANYTHING)} if draw.draw(st.integers(0, 4)) == 0 else {}
        return {key: changed(each, draw) for key, each in value.items()} | more
    return [changed(each, draw) for each in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data(), st.binary(max_size=30))
def test_whatever_the_files_hold_there_is_a_page_and_no_markup_of_theirs(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run")
    lineage.begin(epath.Path(folder), tiny_run.make_config())
    for name, lines in LINES.items():
        whole = [json.dumps(changed(line, draw)).encode() for line in lines]
        (folder / name).write_bytes(b"\n".join([*whole, noise, b"[" * 5000, b"[1]", b'{"step": 3, "lo']))
    html = page(read_facts(epath.Path(folder)), BEGAN + 400)
    assert EVIL not in html and html.count("<section") == 7


def test_the_page_is_there_at_the_end_and_in_between(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with reported(epath.Path(workdir), 0.2 / 60):
        deadline = time.monotonic() + 30
        while not (workdir / "report.html").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (workdir / "report.html").unlink()
    assert "</html>" in (workdir / "report.html").read_text()
    assert "goodput 57.3% of 0:05:00 in 2 starts: step 57.3%" in capfd.readouterr().out
    (workdir / "report.html").unlink()
    with reported(epath.Path(workdir), 0):
        pass
    assert not (workdir / "report.html").exists()


def test_a_report_that_cannot_be_written_ends_no_run(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "report.html").mkdir()
    with reported(epath.Path(workdir), 10):
        pass
    assert capfd.readouterr().out.count("report.html cannot be written") == 1


def test_the_command_writes_the_page_and_refuses_other_folders(workdir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwenvl_jax.report"]
    run = subprocess.run([*command, str(workdir)], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"{workdir}/report.html\n"), run.stderr
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "python -m qwenvl_jax.report WORKDIR" in run.stderr


def test_curves_are_averaged_to_at_most_so_many_points() -> None:
    points = [(float(step), 1.0) for step in range(1000)]
    assert len(averaged(points, 400)) <= 400 and averaged(points, 400)[-1] == (999.0, 1.0)
    assert averaged([(1.0, float("nan")), (2.0, 3.0)]) == [(2.0, 3.0)] and averaged([]) == []
    assert set(rates(tiny_run.make_config(), [log_line(5)])) == {"full rate", "lowest layer of the ViT"}


def test_the_timeline_draws_every_second_of_every_start() -> None:
    account = account_of("".join(json.dumps(line) + "\n" for line in LEDGER).encode())
    for width in (0.0, 30.0, 1000.0):
        drawn = columns(account.starts[0], width)
        assert (drawn[0][0], drawn[-1][1]) == (0, 160)
        assert sum(sum(seconds.values()) for _, _, seconds in drawn) == pytest.approx(160)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', shares(account))]
    assert sum(widths) == pytest.approx(960, abs=0.5)
    assert timeline(account).count('class="lane"') == 2 and ">5 min<" in timeline(account)
