"""The engine: many at once as one at a time, and whatever can go wrong for one goes wrong for nobody else."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation import slots as device
from qwenvl_jax.evaluation.generation.generate import Generator
from qwenvl_jax.evaluation.generation.pictures import Pictures
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.answer import Answer, Event, Finished
from qwenvl_jax.serving.dialogue import build_prompt
from qwenvl_jax.serving.engine import Engine, EngineClosed, QueueFull
from qwenvl_jax.serving.options import NAMED_OPTIONS, AnswerOptions, EngineSettings
from qwenvl_jax.serving.slot_batch import SlotBatch
from tests.evaluation.samples import noise

LONG = AnswerOptions(max_new_tokens=150, temperature=5.0)  # such draws hardly ever end by a stop id
WARM = Sampling(0.9, 20, 0.8)
PATIENCE_S = 300.0  # of a test that fails; no test waits for it

Make = Callable[..., Engine]


@pytest.fixture
def make(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> Iterator[Make]:
    """Makes engines; ends their threads after the test."""
    engines: list[Engine] = []

    def made(start: bool = True, clock: Callable[[], float] | None = None, **settings: Any) -> Engine:
        engine = Engine(
            loaded, tokenizer, config.data.image_size, EngineSettings(**settings), clock=clock or time.monotonic
        )
        engines.append(engine)
        if start:
            engine.start()
        return engine

    yield made
    for engine in engines:
        engine.close()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def asked(number: int) -> tuple[list[dict[str, Any]], list[bytes], AnswerOptions]:
    """One of many different requests: with no picture, one or two, greedy or drawn, of various lengths."""
    pictures = [noise(number // 4 + index) for index in range(number % 3)]
    parts: list[dict[str, Any]] = [{"image": index} for index in range(len(pictures))]
    parts.append({"text": f"What is {'so ' * (number % 7)}number {number}?"})
    turns: list[dict[str, Any]] = [{"role": "user", "parts": parts}]
    if number % 4 == 3:
        answer = {"role": "assistant", "parts": [{"text": "A dog."}]}
        turns = [*turns, answer, {"role": "user", "parts": [{"text": "Why?"}]}]
    draws: dict[str, Any] = {}
    if number % 2:
        draws = {"temperature": 0.5 + number / 20, "top_k": (0, 5, 40)[number % 3], "top_p": (1.0, 0.7)[number % 2]}
    return turns, pictures, AnswerOptions(max_new_tokens=3 + number % 17, seed=number, **draws)


def text(words: str = "What is it?") -> list[dict[str, Any]]:
    return [{"role": "user", "parts": [{"text": words}]}]


def ends(answer: Answer) -> Finished:
    return answer.result(PATIENCE_S)


def test_32_at_once_are_answered_as_one_at_a_time(make: Make) -> None:
    engine = make(joins=2)
    alone = [ends(engine.submit(*asked(number))).ids for number in range(32)]
    with ThreadPoolExecutor(32) as clients:
        together = list(clients.map(lambda number: ends(engine.submit(*asked(number))), range(32)))
    assert [finished.ids for finished in together] == alone
    assert len(set(alone)) > 20
    single = make(slots=1, burst=1)
    assert [ends(single.submit(*asked(number))).ids for number in range(4)] == alone[:4]


def test_answers_are_those_of_the_generator(
    make: Make, loaded: LoadedModel, config: Config, tokenizer: Tokenizer
) -> None:
    engine = make()
    special = tokenizer.special
    limits = Limits(12, stop_ids=(special.im_end, special.im_start, special.eot))
    decoded = Pictures(config.data.image_size)
    numbers = range(0, 12, 2)
    requests = []
    for number in numbers:
        turns, pictures, _ = asked(number)
        tokens = build_prompt(turns, tokenizer, config.model.resampler.queries, 1000).tokens
        shown = [decoded.picture(pictures[index], None) for index in tokens.image_indices]
        requests.append(Request(number, tokens.tokens_L, tokens.image_query_L, shown, seed=number))
    longest = max(len(request.tokens_L) for request in requests)
    for sampling in (Sampling(), WARM):
        expected = dict(Generator(loaded, 4).generate(requests, limits, sampling, longest))
        answers = {}
        for number in numbers:
            options = AnswerOptions(12, sampling.temperature, sampling.top_k, sampling.top_p, seed=number)
            answers[number] = engine.submit(*asked(number)[:2], options)
        assert {number: list(ends(answer).ids) for number, answer in answers.items()} == expected


def test_no_request_compiles_anything_after_the_warm_up(make: Make) -> None:
    engine = make(start=False, slots=1, context=128)
    told: list[str] = []
    engine.warm_up(told.append, all_widths=True)
    assert len(told) == len(set(told)) > 2
    engine.start()
    programs: list[Any] = [device.fill, device.advance, device.store]
    compiled = [program._cache_size() for program in programs]
    for answer in [engine.submit(*asked(number)) for number in range(8)]:
        assert ends(answer).ids
    released = dataclasses.replace(NAMED_OPTIONS["released"], max_new_tokens=9)
    assert ends(engine.submit(text("word " * 10), [], released)).prompt_tokens > 64
    assert [program._cache_size() for program in programs] == compiled
    status = engine.status()
    assert sum(status.finished.values()) == 9 and status.pictures_encoded + status.pictures_reused == 7


def test_pieces_are_the_text_and_come_before_the_end(make: Make, tokenizer: Tokenizer) -> None:
    heard: list[Event] = []
    answer = make().submit(text(), [], LONG, heard.append)
    pieces = list(answer)
    finished = ends(answer)
    assert len(pieces) > 5 and heard == [*pieces, finished]
    assert "".join(pieces) == finished.text == tokenizer.decode(finished.ids)
    assert list(answer) == []
    assert finished.new_tokens == len(finished.ids) > 50


def test_a_stop_string_cuts_the_text_whatever_the_burst(make: Make) -> None:
    whole = ends(make(burst=7).submit(text(), [], LONG))
    stop = whole.text[40:43]
    options = AnswerOptions(max_new_tokens=150, temperature=5.0, stop=("never written", stop))
    cut = [ends(make(burst=burst).submit(text(), [], options)) for burst in (1, 7)]
    assert cut[0].ids == cut[1].ids == whole.ids[: len(cut[0].ids)]
    for finished in cut:
        assert finished.reason == "stop"
        assert finished.text == whole.text[: whole.text.index(stop)]


def test_a_stop_id_ends_an_answer(make: Make, tokenizer: Tokenizer) -> None:
    engine = make()
    reasons = set()
    for seed in range(400):
        finished = ends(engine.submit(text(), [], AnswerOptions(max_new_tokens=60, temperature=5.0, seed=seed)))
        reasons.add(finished.reason)
        special = tokenizer.special
        assert not {special.im_end, special.im_start, special.eot} & set(finished.ids)
        assert (finished.reason == "length") == (finished.new_tokens == 60)
        if reasons == {"stop", "length"}:
            return
    raise AssertionError(reasons)


def test_pictures_are_known_by_their_content(make: Make) -> None:
    engine = make()
    turns = [{"role": "user", "parts": [{"image": 0}, {"image": 1}, {"text": "Alike?"}]}]
    for answer in [engine.submit(turns, [noise(1), bytes(noise(2))]) for _ in range(5)]:
        assert ends(answer).images == 2
    status = engine.status()
    assert (status.pictures_encoded, status.pictures_reused) == (2, 8)


def test_a_cancelled_answer_frees_its_slot(make: Make) -> None:
    engine = make(slots=1)
    holder: list[Answer] = []
    begun = threading.Event()

    def cancel(event: Event) -> None:
        if isinstance(event, str):
            begun.wait(PATIENCE_S)
            holder[0].cancel()

    holder.append(engine.submit(text(), [], LONG, cancel))
    begun.set()
    waiting = engine.submit(text("Next?"), [])
    finished = ends(holder[0])
    assert finished.reason == "cancelled" and 0 < finished.new_tokens < 20
    assert finished.text == "".join(holder[0])
    assert ends(waiting).reason in ("stop", "length")
    holder[0].cancel()  # again, after the end
    assert ends(holder[0]) == finished


def test_cancelled_while_it_waits(make: Make) -> None:
    engine = make(start=False, slots=1)
    answers = [engine.submit(text(), [], AnswerOptions(max_new_tokens=5)) for _ in range(3)]
    answers[1].cancel()
    engine.start()
    assert [ends(answer).reason == "cancelled" for answer in answers] == [False, True, False]
    assert ends(answers[1]).ids == () and ends(answers[1]).first_token_s is None


def test_half_of_many_cancelled_changes_no_other_answer(make: Make) -> None:
    engine = make()
    alone = [ends(engine.submit(*asked(number))).ids for number in range(16)]
    doomed: list[Answer] = []
    kept = []
    for number in range(16):
        kept.append(engine.submit(*asked(number)))
        doomed.append(engine.submit(text(f"{number}?"), [], LONG))
        if number % 2:
            doomed[-1].cancel()
        else:
            doomed[-2 if number else -1].cancel()
    for answer in doomed:
        answer.cancel()
    assert [ends(answer).ids for answer in kept] == alone
    assert {ends(answer).reason for answer in doomed} <= {"cancelled", "stop", "length"}
    assert engine.status().active == engine.status().waiting == 0


@pytest.mark.parametrize("failure", [ConnectionError("nobody is there"), SystemExit(3)])
def test_a_listener_that_fails_costs_its_own_answer_only(make: Make, failure: BaseException) -> None:
    engine = make()

    def gone(event: Event) -> None:
        raise failure

    lost = engine.submit(text(), [], LONG, gone)
    other = engine.submit(text(), [], LONG)
    assert ends(lost).reason == "cancelled" and ends(other).new_tokens > 50


def test_a_full_queue_refuses_with_a_time(make: Make) -> None:
    engine = make(start=False, slots=1, waiting=3)
    answers = [engine.submit(text(), [], AnswerOptions(max_new_tokens=2)) for _ in range(4)]
    with pytest.raises(QueueFull, match=r"ask again in about \d+ s") as refused:
        engine.submit(text(), [])
    assert 1 <= refused.value.seconds <= 60
    engine.start()
    for answer in answers:
        ends(answer)
    assert ends(engine.submit(text(), [])).ids


def test_who_waits_too_long_is_told_so(make: Make) -> None:
    clock = Clock()
    engine = make(start=False, clock=clock, slots=1, wait_seconds=10.0)
    late = engine.submit(text(), [])
    clock.now = 11.0
    early = engine.submit(text(), [])
    engine.start()
    assert ends(late).reason == "timeout" and "within 10 s" in ends(late).error and ends(late).total_s == 11.0
    assert ends(early).reason in ("stop", "length")


def test_an_answer_that_takes_too_long_keeps_its_text(make: Make) -> None:
    clock = Clock()
    engine = make(clock=clock, answer_seconds=10.0)

    def slow(event: Event) -> None:
        clock.now += 4.0

    finished = ends(engine.submit(text(), [], LONG, slow))
    assert finished.reason == "timeout" and "cut off after 10 s" in finished.error
    assert finished.text and 0 < finished.new_tokens < 150


@pytest.mark.parametrize("step", ["advance", "put"])
@pytest.mark.parametrize(
    "error,says",
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (ValueError("boom"), "ValueError: boom"),
    ],
)
def test_a_step_that_fails_ends_the_answers_in_progress_and_nothing_else(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, says: str
) -> None:
    engine = make(start=False)
    right = getattr(SlotBatch, step)
    calls = 0

    def fails_once(batch: SlotBatch, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            batch._state = None  # a failing program has eaten what was donated to it
            raise error
        right(batch, *arguments)

    monkeypatch.setattr(SlotBatch, step, fails_once)
    pictured = [{"role": "user", "parts": [{"image": 0}]}]
    options = AnswerOptions(max_new_tokens=30, temperature=5.0)
    answers = [engine.submit(pictured, [noise(3)], options) for _ in range(10)]
    engine.start()
    finished = [ends(answer) for answer in answers]
    failed = [each for each in finished if each.reason == "error"]
    assert failed == finished[: 2 if step == "put" else 8] and says in failed[0].error
    assert len({each.ids for each in finished[len(failed) :]}) == 1
    assert engine.status().failures == 1
    monkeypatch.undo()
    assert ends(engine.submit(pictured, [noise(3)], options)).ids == finished[-1].ids


def test_closing_waits_for_the_answers(make: Make) -> None:
    engine = make(slots=1)
    answers = [engine.submit(text(), [], AnswerOptions(max_new_tokens=20)) for _ in range(3)]
    engine.close(PATIENCE_S)
    assert all(answer.result(0).reason in ("stop", "length") for answer in answers)
    with pytest.raises(EngineClosed):
        engine.submit(text(), [])
    engine.close()


def test_closing_at_once_cancels(make: Make) -> None:
    engine = make(slots=1)
    answers = [engine.submit(text(), [], LONG) for _ in range(3)]
    engine.close(0)
    assert answers[2].result(0).reason == "cancelled"
    unstarted = make(start=False)
    waits = unstarted.submit(text(), [])
    unstarted.close(PATIENCE_S)
    assert waits.result(0).reason == "cancelled"


def test_bad_requests_are_refused_before_they_wait(make: Make) -> None:
    engine = make(start=False, stored_pictures=2)
    one = [{"role": "user", "parts": [{"image": 0}]}]
    three = [{"role": "user", "parts": [{"image": 0}, {"image": 1}, {"image": 2}]}]
    for turns, images, message in (
        (one, [], "shows picture 0, but there are 0"),
        ([{"role": "user", "parts": [{"image": -1}]}], [noise()], "shows picture -1"),
        (one, [b"no picture"], "picture 1: .*not a readable image"),
        (three, [noise(1), noise(2), noise(3)], "3 pictures, but there is room for 2"),
        (text("word " * 1000), [], "tokens with its pictures"),
    ):
        with pytest.raises(UserError, match=message):
            engine.submit(turns, images)
    assert engine.status().waiting == 0
    engine.submit(one, [noise(1), b"nobody looks at it"])
    assert engine.status().waiting == 1


def test_the_answer_fills_the_context_and_no_more(make: Make) -> None:
    engine = make(slots=1, context=128)
    finished = ends(engine.submit(text(), [], AnswerOptions(max_new_tokens=10**6, temperature=5.0, seed=3)))
    assert finished.reason == "length"
    assert finished.prompt_tokens + finished.new_tokens == 128
    with pytest.raises(UserError, match="positions of the model"):
        make(context=10**5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": 1e-9},
        {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"top_k": 2**40},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        AnswerOptions(**wrong)


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"waiting": -1}, {"wait_seconds": 0.0}, {"burst": 0}, {"context": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must"):
        EngineSettings(**wrong)
