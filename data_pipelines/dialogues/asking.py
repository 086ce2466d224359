"""Asks for all self-instructed dialogues that have no stored reply yet, by several threads, until the budget ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.dialogues.compose import seed_of
from data_pipelines.dialogues.index import picture_at
from data_pipelines.dialogues.job import DialogueJob
from data_pipelines.dialogues.limits import Pace, Purse
from data_pipelines.dialogues.plan import SELF_INSTRUCTION, Entry, planned_shards, shard_entries
from data_pipelines.dialogues.self_instruction import Conversation, next_request
from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime.endpoint import Completion, Endpoint, NotAnsweredError, RefusedError, estimated_tokens
from qwenvl_jax.runtime.errors import StorageOutage, UserError
from qwenvl_jax.runtime.replies import Replies, Request, request_digest

_LOG_S = 30.0
_LONGEST_BACKOFF = 60.0  # seconds
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Tally:
    """Counts of a run. `stored` counts replies of earlier runs, `requests` those of this one."""

    dialogues: int = 0
    failed: int = 0
    stored: int = 0
    requests: int = 0
    sent_again: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def line(self, cost: float) -> str:
        """All counts in a few words."""
        return (
            f"{self.dialogues:,} dialogues by the language model, {self.failed:,} failed; {self.requests:,} requests "
            f"({self.sent_again:,} sent again), {self.stored:,} replies of earlier runs, "
            f"{self.input_tokens:,} + {self.output_tokens:,} tokens, cost {cost:.4f}"
        )


class Asking:
    """The threads of one run, and their shared state."""

    def __init__(self, job: DialogueJob):
        assert job.endpoint is not None
        self._job = job
        self._settings = job.endpoint
        self._endpoint = Endpoint(job.endpoint.address)
        self._replies = Replies(job.replies)
        self._purse = Purse(job.endpoint)
        self._requests = Pace(job.endpoint.requests_per_minute)
        self._tokens = Pace(job.endpoint.tokens_per_minute)
        self._entries = _entries(job)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._answered = not self._replies.is_empty()
        self._seen: set[str] = set()
        self._out_of_budget = False
        self.tally = Tally()

    def run(self) -> Tally:
        """Asks until every dialogue has its replies.

        Raises:
          UserError: if the endpoint refuses the key or all requests, or the budget ends; what was answered is stored.
          StorageOutage: if the endpoint does not answer.
        """
        self._count_stored()
        threads = [
            threading.Thread(target=self._work, name=f"ask-{number}", daemon=True)
            for number in range(self._settings.concurrency)
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait_for(threads)
        except BaseException:
            self._stop.set()
            for thread in threads:
                thread.join()  # what was asked is paid for, so its reply is waited for and stored
            raise
        _log.info("%s", self.tally.line(self._purse.spent))
        if self._errors:
            raise self._errors[0]
        if self._out_of_budget:
            raise UserError(
                f"the budget of {self._settings.budget:g} does not allow another request ({self._purse.spent:.4f} are "
                f"spent, {self.tally.dialogues + self.tally.failed} dialogues are answered); raise --budget and run "
                "the same command again, which continues"
            )
        return self.tally

    def _wait_for(self, threads: list[threading.Thread]) -> None:
        logged = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.2)
            if time.monotonic() - logged > _LOG_S:
                logged = time.monotonic()
                _log.info("%s", self.tally.line(self._purse.spent))

    def _count_stored(self) -> None:
        """Counts the payments of earlier runs into the budget, before a request is sent."""
        for entry in _entries(self._job) if self._answered else ():
            with contextlib.suppress(UserError):  # malformed annotations are reported when the shard is written
                next_request(self._conversation(entry), _Counted(self._replies, self._saw))

    def _saw(self, request: Request, reply: Mapping[str, Any]) -> None:
        digest = request_digest(request)
        with self._lock:
            if digest in self._seen:
                return
            self._seen.add(digest)
            self.tally.stored += 1
        self._pay(reply["usage"]["input_tokens"], reply["usage"]["output_tokens"])

    def _pay(self, input_tokens: int, output_tokens: int) -> None:
        self._purse.pay(self._purse.cost(input_tokens, output_tokens))
        with self._lock:
            self.tally.input_tokens += input_tokens
            self.tally.output_tokens += output_tokens

    def _work(self) -> None:
        """One thread: takes one dialogue after the other."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    entry = next(self._entries, None)
                if entry is None:
                    return
                try:
                    with self._lock:
                        conversation = self._conversation(entry)
                except UserError:
                    continue
                self._converse(conversation)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _conversation(self, entry: Entry) -> Conversation:
        return Conversation(picture_at(self._job, entry.pictures[0]), self._settings, seed_of(self._job, entry))

    def _converse(self, conversation: Conversation) -> None:
        """Asks until the replies give a dialogue, or the tries are used up."""
        while not self._stop.is_set():
            request, reached = next_request(conversation, self._replies)
            if request is None:
                with self._lock:
                    if isinstance(reached, FailedRow):
                        self.tally.failed += 1
                    else:
                        self.tally.dialogues += 1
                return
            self._ask(request)

    def _ask(self, request: Request) -> None:
        """Sends a request, again after a while if it is not answered, and stores the reply."""
        input_tokens = estimated_tokens(json.dumps(request["messages"], ensure_ascii=False))
        at_most = self._purse.cost(input_tokens, self._settings.max_tokens)
        if not self._purse.put_aside(at_most):
            self._out_of_budget = True
            self._stop.set()
            return
        try:
            completion = self._answered_by(request, input_tokens + self._settings.max_tokens)
            if completion is None:
                return
            usage = {"input_tokens": completion.input_tokens, "output_tokens": completion.output_tokens}
            reply = {"text": completion.text, "finish": completion.finish, "usage": usage}
            self._pay(completion.input_tokens, completion.output_tokens)
        except RefusedError as error:
            if not self._answered:
                raise UserError(
                    f"the endpoint refuses the first request ({error}); correct --model and the flags"
                ) from None
            reply = {"refused": str(error), "usage": {"input_tokens": 0, "output_tokens": 0}}
        finally:
            self._purse.take_back(at_most)
        self._replies.put(request, reply)
        self._answered = True

    def _answered_by(self, request: Request, tokens: int) -> Completion | None:
        """The answer to a request; None if another thread has ended the run before it was sent."""
        jitter = random.Random(request_digest(request))
        for number in range(self._settings.retries + 1):
            wait = max(self._requests.delay(), self._tokens.delay(tokens))
            if self._stop.wait(wait):
                return None
            with self._lock:
                self.tally.requests += 1
                self.tally.sent_again += number > 0
            try:
                completion = self._endpoint.complete(request)
            except NotAnsweredError as error:
                if number == self._settings.retries:
                    raise StorageOutage(
                        f"the endpoint did not answer {number + 1} times ({error}); run the same command again, which "
                        "continues"
                    ) from None
                backoff = min(self._settings.backoff * 2**number, _LONGEST_BACKOFF) * (0.5 + jitter.random())
                if self._stop.wait(max(backoff, error.wait)):
                    return None
                continue
            self._tokens.give_back(tokens - completion.input_tokens - completion.output_tokens)
            return completion
        return None


class _Counted(Replies):
    """Stored replies that report every reply that is read."""

    def __init__(self, replies: Replies, saw: Any):
        self._replies = replies
        self._saw = saw

    def get(self, request: Request) -> dict[str, Any] | None:
        reply = self._replies.get(request)
        if reply is not None:
            self._saw(request, reply)
        return reply


def _entries(job: DialogueJob) -> Iterator[Entry]:
    for shard in planned_shards(job):
        yield from (entry for entry in shard_entries(job, shard) if entry.way == SELF_INSTRUCTION)
