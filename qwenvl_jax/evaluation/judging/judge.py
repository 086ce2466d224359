"""A language model that scores answers against reference answers, for TouchStone.

    rows, summary = judge_rows(rows, JudgeSettings("https://api.example.com/v1", "gpt-4", "KEY"), "runs/eval/judge")

As in the published script (OFA-Sys/TouchStone, eval.py), every answer is judged in two rounds, the second with both
answers swapped, at temperature 0 and up to the first line break. The judge sees a description of the picture instead of
the picture. The wording is this project's own; `JudgeSettings.instruction_file` takes the published one.

Each good reply is stored under the digest of its request. A run that is ended continues with the same command, and an
answer that has not changed is never judged twice.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import random
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.evaluation.benchmarks.benchmark import UNANSWERED
from qwenvl_jax.evaluation.benchmarks.published import truth_of
from qwenvl_jax.evaluation.benchmarks.touchstone import ROUNDS
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.endpoint import Address, Endpoint, NotAnsweredError, RefusedError
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.replies import Replies, Request, request_digest

SYSTEM = "You compare two answers to a question about a picture and judge their quality fairly and exactly."
USER = """\
Description of the picture:
{human_annotation}

Question:
{question}

Answer of assistant 1:
{answer_1}

Answer of assistant 2:
{answer_2}

Judge both answers by the description: how helpful, relevant, correct and complete is each? Give each assistant a \
score from 1 to 10; a better answer has a higher score. The order of the answers must not matter. Write one line that \
holds nothing but two numbers with a space between them: the score of assistant 1, then the score of assistant 2."""

FIELDS = ("human_annotation", "question", "answer_1", "answer_2")
LOWEST = 1.0
HIGHEST = 10.0

_FIELD = re.compile("|".join(rf"\{{{field}\}}" for field in FIELDS))
_LONGEST_BACKOFF = 60.0  # seconds
_GIVE_UP = 8  # rounds without any answer in a row, after which the endpoint counts as out of order
_NO_JUDGE = 16  # rounds without a score before the first score, after which the model counts as none that can judge


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How the judge is asked.

    Attributes:
      endpoint: an OpenAI-compatible one, up to and with the version.
      model: its name at the endpoint.
      key_variable: the environment variable that holds the key; "" for an endpoint that needs none.
      timeout: of one request, in seconds.
      retries: how often a round is asked again if it is not answered, or its answer has no two scores.
      backoff: seconds before the first retry; each further wait is twice as long.
      concurrency: requests at the same time.
      instruction_file: JSON with the texts "system" and "user"; "user" has the fields of FIELDS in braces. "" is the
        wording above.
    """

    endpoint: str
    model: str
    key_variable: str = ""
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 4
    instruction_file: str = ""


@dataclasses.dataclass
class Summary:
    """The outcome of a judgement.

    Attributes:
      rounds: of all answers that were given.
      scored: rounds with two scores.
      stored: rounds that were scored by an earlier run.
      failed: [id of the question, number of the round, why] of the other rounds.
    """

    rounds: int = 0
    scored: int = 0
    stored: int = 0
    failed: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)

    def line(self) -> str:
        """One sentence; it names the first round that failed."""
        text = f"{self.scored} of {self.rounds} rounds are judged, {self.stored} of them by an earlier run"
        if self.failed:
            identifier, number, why = self.failed[0]
            text += f"; {len(self.failed)} have no score, the first is round {number} of {identifier}: {why}"
        return text


def judge_rows(
    rows: Sequence[Mapping[str, Any]], settings: JudgeSettings, folder: epath.PathLike
) -> tuple[list[dict[str, Any]], Summary]:
    """Adds the verdict of the judge to every row: `{"scores": [[of the answer, of the reference], ..]}`.

    Rounds without two scores are left out, counted and named. Questions that could not be asked are not judged.

    Args:
      rows: predictions of a benchmark that is judged (`Benchmark.judged`).
      settings: how the judge is asked.
      folder: of the stored replies; several benchmarks and checkpoints may share it.

    Raises:
      UserError: if the endpoint refuses key, address or model, or does not answer at all; what is judged is stored.
    """
    judge = _Judge(settings, folder)
    with concurrent.futures.ThreadPoolExecutor(settings.concurrency, "judge") as pool:
        try:
            verdicts = list(pool.map(judge.verdict, rows))
        except BaseException:
            judge.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    judge.summary.failed.sort()
    return [{**row, **verdict} for row, verdict in zip(rows, verdicts, strict=True)], judge.summary


def scores_in(text: str) -> tuple[float, float] | None:
    """The two scores in the first line of a reply; None if it is anything but two numbers from 1 to 10."""
    words = text.strip().split("\n")[0].split()
    try:
        scores = [float(word) for word in words]
    except ValueError:
        return None
    if len(scores) != 2 or not all(math.isfinite(score) and LOWEST <= score <= HIGHEST for score in scores):
        return None
    return scores[0], scores[1]


class _NotJudgedError(Exception):
    """A round without two scores, and why."""


class _Judge:
    def __init__(self, settings: JudgeSettings, folder: epath.PathLike):
        self.summary = Summary()
        self.stop = threading.Event()
        self._settings = settings
        self._system, self._user = instruction(settings.instruction_file)
        self._endpoint = Endpoint(Address(settings.endpoint, settings.key_variable, settings.timeout))
        self._replies = Replies(str(folder))
        self._lock = threading.Lock()
        self._silent = 0  # rounds in a row without any answer
        self._unscored = 0
        self._has_judged = False

    def verdict(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict on one row."""
        if row.get(UNANSWERED) or self.stop.is_set():
            return {}
        truth = truth_of(row)
        if not truth.answers:
            raise UserError(f"the prediction {row.get('id')!r} has no reference answer; judge those of TouchStone")
        scores = []
        for number in range(ROUNDS):
            with self._lock:
                self.summary.rounds += 1
            try:
                first, second = self._round(self._request(row, truth.answers[0], swapped=number == 1))
            except _NotJudgedError as error:
                with self._lock:
                    self.summary.failed.append((str(row.get("id", "")), number + 1, str(error)))
                continue
            # As published: the reference comes first in the first round.
            scores.append([first, second] if number == 1 else [second, first])
            with self._lock:
                self.summary.scored += 1
        return {"verdict": {"scores": scores}}

    def _request(self, row: Mapping[str, Any], reference: str, *, swapped: bool) -> Request:
        answers = (row["prediction"], reference) if swapped else (reference, row["prediction"])
        values = (row.get("hint", ""), row.get("question", ""), *answers)
        user = written(self._user, dict(zip(FIELDS, map(str, values), strict=True)))
        return {
            "model": self._settings.model,
            "messages": [{"role": "system", "content": self._system}, {"role": "user", "content": user}],
            "temperature": 0,
            "stop": ["\n"],
        }

    def _round(self, request: Request) -> tuple[float, float]:
        """The scores of assistant 1 and 2. Raises _NotJudgedError if there are no scores."""
        stored = self._replies.get(request)
        if stored and (scores := scores_in(str(stored.get("text", "")))):
            with self._lock:
                self.summary.stored += 1
                self._has_judged = True
            return scores
        jitter = random.Random(request_digest(request))
        why = "the run was ended"
        answered = False
        wait = 0.0
        for number in range(self._settings.retries + 1):
            if self.stop.wait(wait):
                break
            try:
                text = self._endpoint.complete(request).text
            except NotAnsweredError as error:
                why = f"not answered ({error})"
                backoff = min(self._settings.backoff * 2**number, _LONGEST_BACKOFF) * (0.5 + jitter.random())
                wait = max(backoff, error.wait)
                continue
            except RefusedError as error:
                why = f"refused ({error})"
                self._count(why, answered=True)
                raise _NotJudgedError(why) from None
            except UserError:
                self.stop.set()
                raise
            answered = True
            if scores := scores_in(text):
                self._replies.put(request, {"text": text})
                self._count("", answered=True)
                return scores
            why = f"not two scores from 1 to 10: {text.strip()[:60]!r}"
            wait = 0.0
        self._count(why, answered=answered)
        raise _NotJudgedError(why)

    def _count(self, why: str, *, answered: bool) -> None:
        """Counts a round, and why it has no score. Ends the run if the endpoint is silent or its model no judge."""
        with self._lock:
            if self.stop.is_set():
                return
            self._silent = 0 if answered else self._silent + 1
            self._has_judged = self._has_judged or not why
            self._unscored += bool(why)
            if self._silent >= _GIVE_UP:
                self.stop.set()
                raise UserError(
                    f"the judge did not answer {self._silent} rounds one after the other, the last one was {why}; run "
                    "the same command again when it does, which continues"
                )
            if self._unscored >= _NO_JUDGE and not self._has_judged:
                self.stop.set()
                raise UserError(
                    f"the judge gave no score in {self._unscored} rounds, the last one was {why}; name another --model "
                    "or --instruction"
                )


def instruction(path: str) -> tuple[str, str]:
    """The system's and the user's text for the judge; see `JudgeSettings.instruction_file`.

    Raises:
      UserError: if the file is missing or not of this form.
    """
    if not path:
        return SYSTEM, USER
    file = storage.path(path)
    if not storage.exists(file):
        raise UserError(f"the judge's instruction {path} does not exist; correct the path")
    values = artifacts.read_json(file)
    texts = [values.get(key) for key in ("system", "user")] if isinstance(values, dict) else []
    if len(texts) != 2 or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f'{path} must be JSON with the texts "system" and "user"')
    system, user = map(str, texts)
    missing = [field for field in FIELDS if f"{{{field}}}" not in user]
    if missing:
        raise UserError(f'"user" in {path} lacks {{{missing[0]}}}; it needs {json.dumps(FIELDS)} in braces')
    return system, user


def written(template: str, values: Mapping[str, str]) -> str:
    """A template with its fields replaced, all at once: a value may contain braces."""
    return _FIELD.sub(lambda match: values[match.group()[1:-1]], template)
