"""The judge of TouchStone, with a server in a process of its own that answers, fails and writes nonsense."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.judging import judge
from qwenvl_jax.evaluation.judging.judge import JudgeSettings, instruction, judge_rows, scores_in, written
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.benchmarks.published_records import ask, row_of
from tests.support.server_process import serving

_SERVER = "tests.support.judge_server"


def rows(count: int) -> list[dict[str, Any]]:
    """Answers of one to five words, against a reference of four."""
    benchmark = BENCHMARKS["touchstone_en"]
    made = []
    for number in range(count):
        question = ask(benchmark, id=str(number), hint=f"picture {number}", answers=["it is a bus"])
        made.append(row_of(benchmark, question, "word " * (1 + number % 5)))
    return made


def settings(url: str, **changes: Any) -> JudgeSettings:
    return JudgeSettings(url, "judge", **({"timeout": 1.0, "backoff": 0.01} | changes))


def requests(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def url(log: Path) -> Iterator[str]:
    with serving(_SERVER, log=log) as address:
        yield address


def test_two_rounds_with_swapped_answers(url: str, log: Path, tmp_path: Path) -> None:
    """The point for the first answer goes to the reference in one round and to the answer in the other."""
    judged, summary = judge_rows(rows(5), settings(url), tmp_path / "judge")
    assert [row["verdict"]["scores"] for row in judged] == [[[n, 5], [n + 1, 4]] for n in (1, 2, 3, 4, 5)]
    assert (summary.rounds, summary.scored, summary.stored, summary.failed) == (10, 10, 0, [])
    scores = BENCHMARKS["touchstone_en"].score(judged)["touchstone"]
    assert scores.aggregate == pytest.approx(3.5)
    assert scores.figures["reference"] == pytest.approx(4.5)
    sent = [entry["body"] for entry in requests(log)]
    assert {(body["model"], body["temperature"], tuple(body["stop"])) for body in sent} == {("judge", 0, ("\n",))}
    first = next(body["messages"][1]["content"] for body in sent if "picture 2" in body["messages"][1]["content"])
    assert "What differs between the pictures?" in first


def test_a_second_run_asks_only_about_new_answers(url: str, log: Path, tmp_path: Path) -> None:
    first, _ = judge_rows(rows(4), settings(url), tmp_path / "judge")
    count = len(requests(log))
    changed = [rows(4)[0] | {"prediction": "another answer"}, *rows(4)[1:]]
    second, summary = judge_rows(changed, settings(url), tmp_path / "judge")
    assert len(requests(log)) == count + 2
    assert summary.stored == 6
    assert second[1:] == first[1:]


def test_nonsense_is_counted_left_out_and_named(log: Path, tmp_path: Path) -> None:
    with serving(_SERVER, log=log, replies="mixed") as url:
        judged, summary = judge_rows(rows(10), settings(url, retries=1), tmp_path / "judge")
    assert [row["verdict"]["scores"] == [] for row in judged] == [number % 5 == 4 for number in range(10)]
    assert summary.scored == 16
    assert [(identifier, number) for identifier, number, _ in summary.failed] == [
        ("4", 1), ("4", 2), ("9", 1), ("9", 2),
    ]  # fmt: skip
    assert summary.line() == (
        "16 of 20 rounds are judged, 0 of them by an earlier run; 4 have no score, the first is round 1 of 4: not two "
        "scores from 1 to 10: 'Both are good.'"
    )
    assert BENCHMARKS["touchstone_en"].score(judged)["touchstone"].figures["judged"] == pytest.approx(0.8)


def test_every_fault_of_an_endpoint_is_survived(log: Path, tmp_path: Path) -> None:
    """Each request fails once: 429, 503, time-out, cut off, not JSON, connection dropped."""
    with serving(_SERVER, log=log, faults="all") as url:
        judged, summary = judge_rows(rows(8), settings(url, timeout=0.5, concurrency=8), tmp_path / "judge")
    assert summary.scored == 16
    assert {entry["fault"] for entry in requests(log)} > {"none"}
    assert [row["verdict"]["scores"][0][1] for row in judged] == [5] * 8


def test_refused_requests_are_named_and_not_repeated(log: Path, tmp_path: Path) -> None:
    with serving(_SERVER, log=log, faults="refused") as url:
        judged, summary = judge_rows(rows(2), settings(url), tmp_path / "judge")
    assert len(requests(log)) == 4
    assert all("refused (HTTP 400" in why for _, _, why in summary.failed)
    assert BENCHMARKS["touchstone_en"].score(judged) == {}


def test_an_endpoint_that_never_answers_ends_the_run_with_a_sentence(log: Path, tmp_path: Path) -> None:
    with serving(_SERVER, log=log, faults="down") as url:
        with pytest.raises(UserError, match="run the same command again when it does"):
            judge_rows(rows(40), settings(url, retries=1), tmp_path / "judge")
        assert len(requests(log)) < 40
    with pytest.raises(UserError, match="did not answer"):
        judge_rows(rows(40), settings("http://127.0.0.1:9/v1", retries=0), tmp_path / "judge")


@pytest.mark.parametrize(
    ("faults", "replies", "words"),
    [
        (
            "drip",
            "good",
            r"the last one was not answered \(the answer took too long\); run the same command",
        ),
        (
            "garbage",
            "good",
            r"the last one was not answered \(BadStatusLine: [ -~]*\); run the same command",
        ),
        ("none", "bad", r"gave no score in 16 rounds, the last one was not two scores .*; name another --model"),
    ],
)
def test_a_judge_that_is_of_no_use_ends_the_run_with_a_sentence(
    log: Path, tmp_path: Path, faults: str, replies: str, words: str
) -> None:
    """`drip` sends a byte of headers now and then, within every time limit of a socket."""
    began = time.monotonic()
    with (
        serving(_SERVER, log=log, faults=faults, replies=replies) as url,
        pytest.raises(UserError, match=words) as caught,
    ):
        judge_rows(rows(40), settings(url, retries=1, timeout=0.3), tmp_path / "judge")
    assert time.monotonic() - began < 60
    assert str(caught.value).isprintable()
    assert len(requests(log)) < 60


def test_a_wrong_key_ends_the_run_and_stays_secret(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with (
        serving(_SERVER, log=log, faults="unauthorized") as url,
        pytest.raises(UserError, match="refuses the key with HTTP 401") as caught,
    ):
        judge_rows(rows(30), settings(url, key_variable="JUDGE_KEY"), tmp_path / "judge")
    assert "sk-secret" not in str(caught.value)
    assert requests(log)[0]["key"] == "Bearer sk-secret"
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "judge").rglob("*.json"))
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="JUDGE_KEY is not set"):
        judge_rows(rows(1), settings(url, key_variable="JUDGE_KEY"), tmp_path / "judge")


def test_a_run_that_is_interrupted_keeps_its_replies(
    url: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the main thread, after ten replies."""
    seen = threading.Event()
    put = judge.Replies.put

    def count(self: judge.Replies, request: judge.Request, reply: dict[str, Any]) -> None:
        put(self, request, reply)
        if len(list((tmp_path / "judge").rglob("*.json"))) >= 10 and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), 2)

    monkeypatch.setattr(judge.Replies, "put", count)
    with pytest.raises(KeyboardInterrupt):
        judge_rows(rows(60), settings(url, concurrency=1), tmp_path / "judge")
    monkeypatch.undo()
    before = len(requests(log))
    _, summary = judge_rows(rows(60), settings(url), tmp_path / "judge")
    assert summary.stored >= 10
    assert len(requests(log)) - before == 120 - summary.stored


def test_questions_that_were_not_asked_are_not_judged(url: str, log: Path, tmp_path: Path) -> None:
    benchmark = BENCHMARKS["touchstone_en"]
    missing = {"id": "x", **benchmark.unanswered(ask(benchmark).about)}
    judged, summary = judge_rows([missing, *rows(1)], settings(url), tmp_path / "judge")
    assert "verdict" not in judged[0]
    assert summary.rounds == 2
    with pytest.raises(UserError, match="has no reference answer"):
        judge_rows([{"id": "1", "prediction": "a", "truth": {}}], settings(url), tmp_path / "judge")


def test_the_instruction_of_the_user(url: str, log: Path, tmp_path: Path) -> None:
    text = "{human_annotation} / {question} / {answer_1} / {answer_2}"
    file = tmp_path / "judge.json"
    file.write_text(json.dumps({"system": "Be strict.", "user": text}))
    judge_rows(rows(1), settings(url, instruction_file=str(file), retries=0), tmp_path / "judge")
    [first, *_] = [entry["body"]["messages"] for entry in requests(log)]
    assert first[0]["content"] == "Be strict."
    assert first[1]["content"] == "picture 0 / What differs between the pictures? / it is a bus / word"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "judge.json"),
        ('{"system": "x"}', '"system" and "user"'),
        ('{"system": "x", "user": "{question} {answer_1} {answer_2}"}', "lacks {human_annotation}"),
    ],
)
def test_wrong_instructions(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "judge.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        instruction(str(file))


@given(st.text(max_size=20), st.text(max_size=20))
def test_values_with_braces_replace_nothing_else(first: str, second: str) -> None:
    values = {"human_annotation": "{question}", "question": first, "answer_1": "{answer_2}", "answer_2": second}
    text = written("{human_annotation}|{question}|{answer_1}|{answer_2}|{other}", values)
    assert text == f"{{question}}|{first}|{{answer_2}}|{second}|{{other}}"


@given(st.floats(1, 10), st.floats(1, 10), st.sampled_from(["", "\nBoth are fine.", "  "]))
def test_scores_of_a_first_line(first: float, second: float, end: str) -> None:
    assert scores_in(f" {first} {second}{end}") == (first, second)


@pytest.mark.parametrize("text", ["", "8", "8 9 7", "8, 9", "0 5", "5 11", "inf 3", "nan nan", "eight nine", "\n8 9x"])
def test_nonsense_is_no_score(text: str) -> None:
    assert scores_in(text) is None


@given(st.text(max_size=60))
def test_any_reply_is_read(text: str) -> None:
    scores = scores_in(text)
    assert scores is None or all(1 <= score <= 10 for score in scores)
