"""The kinds of exchange: a question and its answer, which follows from the annotations of the shown pictures alone.

`exchanges_of_several.KINDS` has one function per kind, from the state of a dialogue to the exchanges that are possible
next. To add a kind, write the function, its entry with its weight, and its templates in every language.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence

from data_pipelines.dialogues.picture import AnnotatedPicture, Box, Line, Region
from data_pipelines.dialogues.wording import TEMPLATES, definite, filled, key_words, named, sentence
from qwenvl_jax.data.dialogues import Part

_LONGEST_PHRASE = 60  # characters of a phrase within a question
_LONGEST_TEXT = 400  # characters that are read out
_MOST_REGIONS = 6  # of one answer


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
      kind: a key of KINDS.
      question: parts of the user's turn, without pictures.
      answer: parts of the assistant's turn.
      target: the fact that the exchange tells; a dialogue tells no fact twice.
      picture: index of the picture that the answer is about; -1 for several.
      region: the one that "it" would mean in the next question, if any.
      told: phrases of the picture that have been named, casefolded.
    """

    kind: str
    question: list[Part]
    answer: list[Part]
    target: tuple[object, ...]
    picture: int = -1
    region: Region | None = None
    told: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class State:
    """The pictures that have been shown and the exchanges so far."""

    rng: random.Random
    pictures: Sequence[AnnotatedPicture]
    before: Sequence[Exchange]

    @property
    def language(self) -> str:
        """The language of all texts."""
        return self.pictures[0].language

    def called(self, number: int) -> str:
        """The name of a picture in a text: its number if there are several pictures."""
        templates = TEMPLATES[self.language]
        if len(self.pictures) > 1:
            return str(templates.NUMBERED.format(n=number + 1))
        return self.rng.choice(templates.ONE_PICTURE)

    def question(self, kind: str, **values: str | Sequence[Part]) -> list[Part]:
        """A question of a kind in one of its wordings."""
        return _capital(filled(self.rng.choice(TEMPLATES[self.language].QUESTIONS[kind]), **values), self.language)

    def answer(self, kind: str, **values: str | Sequence[Part]) -> list[Part]:
        """An answer of a kind in one of its wordings."""
        return _capital(filled(self.rng.choice(TEMPLATES[self.language].ANSWERS[kind]), **values), self.language)


# Makes one exchange; the wording is drawn when it is called, so that exchanges that are not chosen cost nothing.
Maker = Callable[[], Exchange]
Kind = Callable[[State], Iterator[tuple[tuple[object, ...], Maker]]]


def _capital(parts: list[Part], language: str) -> list[Part]:
    if language == "en" and parts and "text" in parts[0]:
        text = parts[0]["text"]
        return [{"text": text[:1].upper() + text[1:]}, *parts[1:]]
    return parts


def region_part(state: State, number: int, region: Region) -> Part:
    """A region of an answer: its phrase with all its boxes."""
    name = definite(region.phrase, state.language)
    return {"ref": name[:1].upper() + name[1:], "boxes": [list(box) for box in region.boxes], "image": number}


def _box_part(number: int, box: Box) -> list[Part]:
    return [{"boxes": [list(box)], "image": number}]


def askable(picture: AnnotatedPicture) -> list[Region]:
    """The regions whose phrases fit into a question and tell them from others."""
    return [each for each in picture.regions if len(each.phrase) <= _LONGEST_PHRASE and key_words(each.phrase)]


def _describe(state: State, number: int, kind: str) -> Exchange:
    picture = state.pictures[number]
    caption = state.rng.choice(picture.captions)
    return Exchange(
        kind,
        state.question(kind, picture=state.called(number)),
        state.answer(kind, caption=sentence(caption, state.language)),
        ("describe", number),
        number,
    )


def describe(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """One of the captions."""
    for number, picture in enumerate(state.pictures):
        if picture.captions:
            yield ("describe", number), functools.partial(_describe, state, number, "describe")


def describe_next(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """After a description of a picture, that of another one: "And Picture 2?"."""
    last = state.before[-1] if state.before else None
    if last is None or last.kind not in ("describe", "describe_next"):
        return
    for number, picture in enumerate(state.pictures):
        if picture.captions and number != last.picture:
            yield ("describe", number), functools.partial(_describe, state, number, "describe_next")


def ask(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """An annotated question."""

    def make(number: int, question: str, answer: str) -> Exchange:
        templates = TEMPLATES[state.language]
        if len(state.pictures) > 1:
            question = templates.IN_PICTURE.format(picture=state.called(number), question=question)
        said = state.answer("ask", answer=sentence(answer, state.language))
        return Exchange("ask", state.question("ask", question=question), said, ("ask", number, question), number)

    for number, picture in enumerate(state.pictures):
        for question, answer in picture.questions:
            yield ("ask", number, question), functools.partial(make, number, question, answer)


def _where(state: State, number: int, region: Region, kind: str) -> Exchange:
    values: dict[str, str] = {}
    if kind == "where":
        values = {"name": definite(region.phrase, state.language), "picture": state.called(number)}
    answer = "where_many" if len(region.boxes) > 1 else kind
    return Exchange(
        kind,
        state.question(kind, **values),
        state.answer(answer, region=[region_part(state, number, region)]),
        ("where", number, region.phrase.casefold()),
        number,
        told=frozenset([region.phrase.casefold()]),
    )


def where(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """From a phrase to all its boxes."""
    for number, picture in enumerate(state.pictures):
        for region in askable(picture):
            target = ("where", number, region.phrase.casefold())
            yield target, functools.partial(_where, state, number, region, "where")


def where_it(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """After an answer about something whose box was not told, its box: "Where is it?"."""
    last = state.before[-1] if state.before else None
    if last is not None and last.region is not None and len(last.region.boxes) == 1:
        target = ("where", last.picture, last.region.phrase.casefold())
        yield target, functools.partial(_where, state, last.picture, last.region, "where_it")


def what_at(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """From a box to its phrase."""

    def make(number: int, region: Region) -> Exchange:
        name = named(region.phrase, state.language)
        return Exchange(
            "what_at",
            state.question("what_at", box=_box_part(number, region.boxes[0]), picture=state.called(number)),
            state.answer("what_at", name=name, Name=name[:1].upper() + name[1:]),
            ("where", number, region.phrase.casefold()),
            number,
            told=frozenset([region.phrase.casefold()]),
        )

    for number, picture in enumerate(state.pictures):
        for region in askable(picture):
            if len(region.boxes) == 1 and sum(region.boxes[0] in other.boxes for other in picture.regions) == 1:
                yield ("where", number, region.phrase.casefold()), functools.partial(make, number, region)


def ground(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """A caption with the boxes of its phrases."""

    def make(number: int) -> Exchange:
        segments: list[Part] = []
        picture = state.pictures[number]
        chosen = state.rng.choice(picture.grounded)
        for segment in chosen:
            if segment.boxes:
                boxes = [list(box) for box in segment.boxes]
                segments.append({"ref": segment.text.strip(), "boxes": boxes, "image": number})
            else:
                segments.append({"text": segment.text})
        told = frozenset(" ".join(each.text.split()).casefold() for each in chosen if each.boxes)
        question = state.question("ground", picture=state.called(number))
        answer = state.answer("ground", segments=segments)
        return Exchange("ground", question, answer, ("describe", number), number, told=told)

    for number, picture in enumerate(state.pictures):
        if picture.grounded:
            yield ("describe", number), functools.partial(make, number)


def _enumerated(state: State, number: int, regions: Sequence[Region]) -> list[Part]:
    comma = ", " if state.language == "en" else "、"
    parts: list[Part] = []
    for index, region in enumerate(regions):
        part = region_part(state, number, region)
        if state.language == "en":
            part["ref"] = named(region.phrase, "en")
        parts += [{"text": comma}, part] if index else [part]
    return parts


def list_regions(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """Some regions with their boxes."""

    def make(number: int) -> Exchange:
        regions = askable(state.pictures[number])
        chosen = state.rng.sample(regions, min(len(regions), state.rng.randint(2, _MOST_REGIONS)))
        told = frozenset(region.phrase.casefold() for region in chosen)
        question = state.question("list", picture=state.called(number))
        answer = state.answer("list", regions=_enumerated(state, number, chosen))
        return Exchange("list", question, answer, ("list", number), number, told=told)

    for number, picture in enumerate(state.pictures):
        if len(askable(picture)) >= 2:
            yield ("list", number), functools.partial(make, number)


def what_else(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """After an answer that named regions, what else there is: regions that no answer has named."""
    last = state.before[-1] if state.before else None
    if last is None or not last.told or last.picture < 0:
        return
    number = last.picture
    told = frozenset[str]().union(*(each.told for each in state.before if each.picture == number))
    left = [region for region in askable(state.pictures[number]) if region.phrase.casefold() not in told]

    def make() -> Exchange:
        chosen = state.rng.sample(left, min(len(left), state.rng.randint(1, 3)))
        told_now = frozenset(region.phrase.casefold() for region in chosen)
        answer = state.answer("what_else", regions=_enumerated(state, number, chosen))
        return Exchange("what_else", state.question("what_else"), answer, ("else", number), number, told=told_now)

    if left:
        yield ("else", number), make


def read(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """All lines, in reading order."""

    def make(number: int) -> Exchange:
        lines = "\n".join(line.text for line in state.pictures[number].lines)
        question = state.question("read", picture=state.called(number))
        answer: list[Part] = [{"text": lines}]
        return Exchange("read", question, answer, _read_target(state, number), number)

    for number, picture in enumerate(state.pictures):
        if picture.lines and sum(len(line.text) for line in picture.lines) <= _LONGEST_TEXT:
            yield _read_target(state, number), functools.partial(make, number)


def _read_target(state: State, number: int) -> tuple[object, ...]:
    """To read all lines tells the same as to read the only one."""
    lines = state.pictures[number].lines
    return ("line", number, lines[0].text) if len(lines) == 1 else ("read", number)


def single_lines(picture: AnnotatedPicture) -> Iterator[Line]:
    """Lines whose text and whose corners no other line has."""
    for line in picture.lines:
        same = sum(other.text == line.text or other.quad == line.quad for other in picture.lines)
        if same == 1 and 2 <= len(line.text) <= _LONGEST_PHRASE:
            yield line


def _line_part(number: int, line: Line) -> Part:
    return {"ref": line.text, "quads": [[list(corner) for corner in line.quad]], "image": number}


def read_at(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """From the corners of a line to its text."""

    def make(number: int, line: Line) -> Exchange:
        quad: Part = {"quads": [[list(corner) for corner in line.quad]], "image": number}
        question = state.question("read_at", quad=[quad], picture=state.called(number))
        answer = filled(state.rng.choice(TEMPLATES[state.language].ANSWERS["read_at"]), text=line.text)
        return Exchange("read_at", question, answer, ("line", number, line.text), number)

    for number, picture in enumerate(state.pictures):
        for line in single_lines(picture):
            yield ("line", number, line.text), functools.partial(make, number, line)


def where_text(state: State) -> Iterator[tuple[tuple[object, ...], Maker]]:
    """From the text of a line to its corners."""

    def make(number: int, line: Line) -> Exchange:
        question = state.question("where_text", text=line.text, picture=state.called(number))
        answer = state.answer("where_text", line=[_line_part(number, line)])
        return Exchange("where_text", question, answer, ("line", number, line.text), number)

    for number, picture in enumerate(state.pictures):
        for line in single_lines(picture):
            yield ("line", number, line.text), functools.partial(make, number, line)
