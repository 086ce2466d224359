"""The kinds of exchange about several pictures; see `exchanges`. `KINDS` has these and those about one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data_pipelines.dialogues import exchanges
from data_pipelines.dialogues.exchanges import Exchange, Kind, Maker, State
from data_pipelines.dialogues.picture import Line, Region
from data_pipelines.dialogues.wording import TEMPLATES, key_words, named, sentence


def count(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """How many pictures have been shown, if they are several."""

    def make() -> Exchange:
        shown = len(state.pictures)
        word = TEMPLATES[state.language].COUNTS[shown]
        answer = state.answer("count", count=word, Count=word.capitalize())
        return Exchange("count", state.question("count"), answer, ("count", shown))

    if len(state.pictures) > 1:
        yield ("count", len(state.pictures)), make


def _only_here(state: State) -> Iterator[tuple[int, Region]]:
    """Regions of one picture of which no text of another one has a word."""
    if len(state.pictures) < 2:
        return
    for number, picture in enumerate(state.pictures):
        for region in exchanges.askable(picture):
            if not _told_of_others(state, number, key_words(region.phrase)):
                yield number, region


def _told_of_others(state: State, number: int, words: frozenset[str]) -> bool:
    """Whether the annotations of another picture than `number` have one of these words."""
    return any(each.vocabulary.has_any(words) for other, each in enumerate(state.pictures) if other != number)


def _which(state: State, number: int, region: Region, kind: str) -> Exchange:
    question = state.question(kind, name=named(region.phrase, state.language))
    phrase = region.phrase.casefold()
    if kind == "which":
        answer = state.answer(kind, picture=state.called(number))
        target = ("which", number, phrase)
        return Exchange(kind, question, answer, target, number, region, frozenset([phrase]))
    answer = state.answer(kind, picture=state.called(number), region=[exchanges.region_part(state, number, region)])
    return Exchange(kind, question, answer, ("where", number, phrase), number, told=frozenset([phrase]))


def which(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """Which picture shows something; the next question may be where it is."""
    for number, region in _only_here(state):
        target = ("which", number, region.phrase.casefold())
        yield target, functools.partial(_which, state, number, region, "which")


def which_find(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """Which picture shows something, and where."""
    for number, region in _only_here(state):
        if len(region.boxes) == 1:
            target = ("where", number, region.phrase.casefold())
            yield target, functools.partial(_which, state, number, region, "which_find")


def which_text(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """Which picture has a line of text."""

    def make(number: int, line: Line) -> Exchange:
        question = state.question("which_text", text=line.text)
        answer = state.answer("which_text", picture=state.called(number))
        return Exchange("which_text", question, answer, ("which", number, line.text), number)

    if len(state.pictures) < 2:
        return
    for number, picture in enumerate(state.pictures):
        for line in exchanges.single_lines(picture):
            words = key_words(line.text)
            if words and not _told_of_others(state, number, words):
                yield ("which", number, line.text), functools.partial(make, number, line)


def compare(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """What two pictures show, one after the other."""

    def make(first: int, last: int) -> Exchange:
        templates = TEMPLATES[state.language]
        names = {"first": state.called(first), "last": state.called(last)}
        captions = {
            f"{name}_caption": sentence(state.rng.choice(state.pictures[number].captions), state.language)
            for name, number in (("first", first), ("last", last))
        }
        question = state.question("compare", pair=templates.PAIR.format(**names))
        return Exchange("compare", question, state.answer("compare", **names, **captions), ("compare", first, last))

    for first, picture in enumerate(state.pictures):
        for last in range(first + 1, len(state.pictures)):
            if picture.captions and state.pictures[last].captions:
                yield ("compare", first, last), functools.partial(make, first, last)


class Weighted(NamedTuple):
    """A kind of exchange and how often it is chosen in relation to the others that are possible."""

    kind: Kind
    weight: float


KINDS: Mapping[str, Weighted] = {
    "describe": Weighted(exchanges.describe, 2),
    "describe_next": Weighted(exchanges.describe_next, 8),
    "ask": Weighted(exchanges.ask, 3),
    "where": Weighted(exchanges.where, 3),
    "where_it": Weighted(exchanges.where_it, 15),
    "what_at": Weighted(exchanges.what_at, 3),
    "ground": Weighted(exchanges.ground, 2),
    "list": Weighted(exchanges.list_regions, 1),
    "what_else": Weighted(exchanges.what_else, 3),
    "read": Weighted(exchanges.read, 1.5),
    "read_at": Weighted(exchanges.read_at, 1.5),
    "where_text": Weighted(exchanges.where_text, 1.5),
    "count": Weighted(count, 0.3),
    "which": Weighted(which, 5),
    "which_find": Weighted(which_find, 2),
    "which_text": Weighted(which_text, 1.5),
    "compare": Weighted(compare, 2),
}
