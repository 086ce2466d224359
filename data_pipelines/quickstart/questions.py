"""Short questions about a scene, each with one right answer.

`ask` first draws a kind and then a question of that kind, so that the kinds that apply are equally frequent. Yes or no
is also drawn first, so that neither is the better guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines.quickstart.scenes import Scene, SceneObject
from data_pipelines.quickstart.sentences import CLEAR_GAP, ends, sides_of
from data_pipelines.quickstart.stamps import Stamp

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_KINDS_OF_THINGS = {"animals": "animal", "vehicles": "vehicle"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its answer. `kind` names the generator, for counts and scores per kind."""

    kind: str
    question: str
    answer: str


def ask(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp]) -> Question:
    """One question of a random kind among those that apply to `scene`."""
    gap = CLEAR_GAP * scene.image_HWC.shape[0]
    order = rng.permutation(len(_GENERATORS))
    for index in order:
        questions = _GENERATORS[index](rng, scene.objects, stamps, gap)
        if questions:
            return questions[rng.integers(len(questions))]
    raise AssertionError("`_is_there` always has a question")


def ask_presence(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp]) -> Question:
    """Whether the scene shows one of its objects or, as often, one of the other stamps."""
    return _is_there(rng, scene.objects, stamps, 0.0)[0]


def _what_end(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    if len(objects) == 1:
        return [Question("what", "What is in the picture?", objects[0].stamp.noun_en)]
    return [
        Question("what_end", f"What is {_at(side)}?", item.stamp.noun_en) for side, item in ends(objects, gap).items()
    ]


def _how_many(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    if len(objects) == 1 and rng.integers(2):  # fewer kinds apply to one object, so the answer would be "1" too often
        return []
    return [Question("how_many", "How many objects are there?", str(len(objects)))]


def _is_there(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    if rng.integers(2):
        item = objects[int(rng.integers(len(objects)))].stamp
        return [Question("is_there", f"Is there {item.name_en}?", "yes")]
    present = {o.stamp.id for o in objects}
    absent = [stamp for stamp in stamps if stamp.id not in present]
    return [Question("is_there", f"Is there {absent[rng.integers(len(absent))].name_en}?", "no")]


def _single_neighbours(objects: Sequence[SceneObject], gap: float) -> Iterator[tuple[SceneObject, str, SceneObject]]:
    """(object, side, neighbour) for every side of every object on which there is exactly one other object."""
    for item in objects:
        for side, others in sides_of(item, objects, gap).items():
            if len(others) == 1:
                yield item, side, others[0]


def _what_beside(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    questions = []
    for item, side, neighbour in _single_neighbours(objects, gap):
        question = f"What is {_relation(side)} the {item.stamp.noun_en}?"
        questions.append(Question("what_beside", question, neighbour.stamp.noun_en))
    return questions


def _what_of(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    """The relation of `_what_beside`, asked from its other end."""
    questions = []
    for item, side, neighbour in _single_neighbours(objects, gap):
        question = f"What is the {item.stamp.noun_en} {_relation(_OPPOSITE[side])}?"
        questions.append(Question("what_of", question, neighbour.stamp.noun_en))
    return questions


def _next_to(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    if len(objects) != 2:
        return []
    a, b = (o.stamp for o in objects)
    return [
        Question("next_to", f"What is next to the {a.noun_en}?", b.noun_en),
        Question("next_to", f"What is next to the {b.noun_en}?", a.noun_en),
    ]


def _is_beside(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    answer = "yes" if rng.integers(2) else "no"
    questions = []
    for item in objects:
        for side, others in sides_of(item, objects, gap).items():
            for other in others:  # `other` really is on `side` of `item`
                said = side if answer == "yes" else _OPPOSITE[side]
                question = f"Is the {other.stamp.noun_en} {_relation(said)} the {item.stamp.noun_en}?"
                questions.append(Question("is_beside", question, answer))
    return questions


def _which_half(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    """Applies to clearly separate objects only. The side is drawn first, so that both are equally frequent."""
    extremes = ends(objects, gap)
    side = ("left", "right")[rng.integers(2)]
    if side not in extremes:
        return []
    question = f"Is the {extremes[side].stamp.noun_en} on the left or on the right?"
    return [Question("which_half", question, side)]


def _what_kind(
    rng: np.random.Generator, objects: Sequence[SceneObject], stamps: Sequence[Stamp], gap: float
) -> list[Question]:
    questions = []
    for category, kind in _KINDS_OF_THINGS.items():
        members = [o.stamp for o in objects if o.stamp.category == category]
        if len(members) == 1:
            questions.append(Question("what_kind", f"What {kind} is there?", members[0].noun_en))
    return questions


Generator = Callable[[np.random.Generator, Sequence[SceneObject], Sequence[Stamp], float], list[Question]]
_GENERATORS: tuple[Generator, ...] = (
    _what_end,
    _how_many,
    _is_there,
    _what_beside,
    _what_of,
    _next_to,
    _is_beside,
    _which_half,
    _what_kind,
)


def _at(side: str) -> str:
    return f"on the {side}" if side in ("left", "right") else f"at the {side}"


def _relation(side: str) -> str:
    return f"to the {side} of" if side in ("left", "right") else side
