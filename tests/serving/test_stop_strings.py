"""Stop strings: the same cut however the text comes in pieces, and nothing lost before it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.options import AnswerOptions
from qwenvl_jax.serving.stop_strings import MAX_LENGTH, MAX_STOPS, StopStrings

texts = st.text("ab<", max_size=40)
stop_lists = st.lists(st.text("ab<", min_size=1, max_size=5), max_size=4)


def pieces_of(text: str, stops: list[str], cuts: set[int]) -> tuple[list[str], bool]:
    """What is let go piece by piece, and whether a stop string was found."""
    stop = StopStrings(stops)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = []
    for start, end in itertools.pairwise(bounds):
        pieces.append(stop.add(text[start:end]))
        if stop.found:
            return pieces, True
    return [*pieces, stop.end()], False


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first; the rule, letter by letter."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(texts, stop_lists, st.sets(st.integers(1, 40)))
def test_the_cut_does_not_depend_on_the_pieces(text: str, stops: list[str], cuts: set[int]) -> None:
    pieces, found = pieces_of(text, stops, cuts)
    assert ("".join(pieces), found) == cut(text, stops)


@given(texts, stop_lists)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    stop = StopStrings(stops)
    let_go = ""
    for count, letter in enumerate(text, 1):
        let_go += stop.add(letter)
        if stop.found:
            return
        held = text[len(let_go) : count]
        assert not held or any(each.startswith(held) for each in stops)


@pytest.mark.parametrize("stop", [("",), ("a" * (MAX_LENGTH + 1),), ("a",) * (MAX_STOPS + 1)])
def test_what_cannot_end_an_answer_is_refused(stop: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="stop string"):
        AnswerOptions(stop=stop)
