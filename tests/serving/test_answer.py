"""Answers while they are written: what is told, and what those who wait for them see."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.data import tags
from qwenvl_jax.data.tokenizer import QwenTokenizer
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.serving.answer import Answer, Draft, Event, Finished
from qwenvl_jax.serving.options import AnswerOptions

BYTES = QwenTokenizer({bytes([value]): value for value in range(256)})  # every id is one byte
TAG_NAMES = (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS)
WORDS = [*"a <>狗é", "<ref>", "</ref>", "<box>"]

texts = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)
stop_lists = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("".join), max_size=3)


def draft_of(stop: tuple[str, ...] = (), on_event: object = None) -> Draft:
    request = Request(0, np.zeros(7, np.int32), np.full(7, -1, np.int32))
    answer = Answer(on_event, lambda: None)  # type: ignore[arg-type]
    return Draft(request, AnswerOptions(stop=stop), answer, BYTES)


def write(draft: Draft, ids: list[int], cuts: list[int]) -> Finished:
    """Adds ids in bursts of the lengths `cuts` until a stop string ends the answer."""
    start = 0
    for length in [*cuts, len(ids)]:
        if start < len(ids) and draft.add(ids[start : start + length]):
            return draft.end("stop")
        start += length
    return draft.end("length")


@given(texts, stop_lists, st.lists(st.integers(1, 5)))
def test_pieces_are_the_text_before_the_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    heard: list[Event] = []
    finished = write(draft_of(tuple(stops), heard.append), list(text.encode()), cuts)
    pieces = [event for event in heard if isinstance(event, str)]
    assert heard[-1] is finished and all(pieces)
    assert "".join(pieces) == finished.text
    assert finished == _without_times(write(draft_of(tuple(stops)), list(text.encode()), []), finished)
    assert not any(stop in finished.text for stop in stops)
    assert text.startswith(finished.text)
    assert (finished.reason == "stop") == any(stop in text for stop in stops)


def _without_times(finished: Finished, like: Finished) -> Finished:
    return Finished(**{**vars(finished), "first_token_s": like.first_token_s, "total_s": like.total_s})


@given(texts, stop_lists, st.lists(st.integers(1, 5)))
def test_no_piece_breaks_a_character_or_a_tag(text: str, stops: list[str], cuts: list[int]) -> None:
    heard: list[Event] = []
    finished = write(draft_of(tuple(stops), heard.append), list(text.encode()), cuts)
    ends: set[int] = set()
    length = 0
    for event in heard[:-1]:
        assert isinstance(event, str) and "\ufffd" not in event
        length += len(event)
        ends.add(length)
    for name in TAG_NAMES:
        for match in re.finditer(re.escape(name), finished.text):
            assert not ends & set(range(match.start() + 1, match.end())), (name, heard)


def test_the_end_is_waited_for_and_can_be_asked_for_again() -> None:
    draft = draft_of()
    with pytest.raises(TimeoutError):
        draft.answer.result(0)
    draft.add(list(b"ab"))
    draft.end("length")
    assert list(draft.answer) == ["ab"]
    assert list(draft.answer) == []
    assert draft.answer.result(0) is draft.answer.result()


def test_a_cancellation_wakes_the_engine_and_may_come_from_any_thread() -> None:
    woken: list[int] = []
    answer = Answer(None, lambda: woken.append(1))
    thread = threading.Thread(target=answer.cancel)
    thread.start()
    thread.join()
    answer.cancel()
    assert answer.cancelled and woken == [1, 1]
