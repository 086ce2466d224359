"""Sentences about a scene, in English and Chinese. They depend on the scene alone, without chance.

One scene has one caption, so that a caption's score measures seeing and not guessing the wording.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.quickstart.scenes import SceneObject

Segment = tuple[str, SceneObject | None]

_LIST = {"en": (", ", " and "), "zh": ("、", "和")}
_NUMBERS_ZH = ("零", "一", "两", "三")

# Two centres closer than this share of the side are neither left nor right of each other, nor above or below.
CLEAR_GAP = 0.15

# An object's centre decides its third of the scene, across and down. Objects are large, so the middle is narrow.
_MIDDLE = (0.44, 0.56)
_THIRDS = {
    "en": (
        ("at the top left", "at the top", "at the top right"),
        ("on the left", "in the middle", "on the right"),
        ("at the bottom left", "at the bottom", "at the bottom right"),
    ),
    "zh": (("左上", "上方", "右上"), ("左边", "中间", "右边"), ("左下", "下方", "右下")),
}


def located_caption(objects: Sequence[SceneObject], side: int, language: str) -> str:
    """ "A badger on the left and a fire truck at the top right." or "一只獾在左边，一辆救火车在右上。"; left to right.

    Captions of web pictures seldom say where things are. Those of the quickstart do, because its stage 1 has minutes,
    not a billion pictures, to find out that image features correspond to regions of the picture.
    """
    between, end = (" and ", ".") if language == "en" else ("，", "。")
    joint = " " if language == "en" else "在"
    phrases = [f"{o.stamp.name(language)}{joint}{_third(o, side, language)}" for o in objects]
    return capitalized(between.join(phrases)) + end


def _third(item: SceneObject, side: int, language: str) -> str:
    """The words for the third of the scene, across and down, that contains the object's centre."""
    column, row = (sum(value / side > edge for edge in _MIDDLE) for value in item.center)
    return _THIRDS[language][row][column]


def caption(objects: Sequence[SceneObject], language: str) -> str:
    """ "A badger and a fire truck.", "A badger above a fire truck." or "一只獾和一辆救火车。"; left to right."""
    return "".join(text for text, _ in caption_segments(objects, language))


def caption_segments(objects: Sequence[SceneObject], language: str) -> list[Segment]:
    """The caption cut into pieces; a piece that names an object carries it."""
    end = "." if language == "en" else "。"
    if len(objects) == 2 and stacked(objects[0], objects[1]):
        upper, lower = sorted(objects, key=lambda o: o.center[1])
        if language == "en":
            segments: list[Segment] = [(upper.stamp.name_en, upper), (" above ", None), (lower.stamp.name_en, lower)]
        else:
            segments = [(upper.stamp.name_zh, upper), ("在", None), (lower.stamp.name_zh, lower), ("的上面", None)]
    else:
        comma, last = _LIST[language]
        segments = []
        for index, item in enumerate(objects):
            if index:
                segments.append((last if index == len(objects) - 1 else comma, None))
            segments.append((item.stamp.name(language), item))
    first, named = segments[0]
    return [(capitalized(first), named), *segments[1:], (end, None)]


def enumeration(names: Sequence[str], language: str) -> str:
    """ "a badger, a lemon and a fox" or "一只獾、一个柠檬和一只狐狸"."""
    comma, last = _LIST[language]
    return comma.join(names[:-1]) + (last if len(names) > 1 else "") + names[-1]


def stacked(a: SceneObject, b: SceneObject) -> bool:
    """Whether two objects are one above the other rather than side by side."""
    return abs(a.center[1] - b.center[1]) > abs(a.center[0] - b.center[0])


def capitalized(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def count_sentence(objects: Sequence[SceneObject], language: str) -> str:
    """ "There are 2 objects: a badger and a fire truck."."""
    names = enumeration([o.stamp.name(language) for o in objects], language)
    if language == "zh":
        return f"图里有{_NUMBERS_ZH[len(objects)]}样东西：{names}。"
    count = len(objects)
    return f"There {'is 1 object' if count == 1 else f'are {count} objects'}: {names}."


def location_sentence(item: SceneObject, side: str, language: str) -> str:
    """ "The badger is on the left."; `side` is "left", "right", "top" or "bottom"."""
    if language == "zh":
        where = {"left": "左边", "right": "右边", "top": "上面", "bottom": "下面"}[side]
        return f"{item.stamp.noun_zh}在{where}。"
    return f"The {item.stamp.noun_en} is {'on' if side in ('left', 'right') else 'at'} the {side}."


def ends(objects: Sequence[SceneObject], gap_px: float) -> dict[str, SceneObject]:
    """The objects that are clearly the leftmost, rightmost, topmost or lowest one, by side.

    Clearly means that the centre is at least `gap_px` from the next one. A single object is not at any end.
    """
    extremes: dict[str, SceneObject] = {}
    if len(objects) < 2:
        return extremes
    for axis, (first, last) in enumerate((("left", "right"), ("top", "bottom"))):
        order = sorted(objects, key=lambda o: o.center[axis])
        if order[1].center[axis] - order[0].center[axis] >= gap_px:
            extremes[first] = order[0]
        if order[-1].center[axis] - order[-2].center[axis] >= gap_px:
            extremes[last] = order[-1]
    return extremes


def sides_of(item: SceneObject, objects: Sequence[SceneObject], gap_px: float) -> dict[str, list[SceneObject]]:
    """The other objects clearly to the left of, to the right of, above and below `item`."""
    sides: dict[str, list[SceneObject]] = {"left": [], "right": [], "above": [], "below": []}
    for other in objects:
        if other is item:
            continue
        for axis, (before, after) in enumerate((("left", "right"), ("above", "below"))):
            distance = other.center[axis] - item.center[axis]
            if distance <= -gap_px:
                sides[before].append(other)
            elif distance >= gap_px:
                sides[after].append(other)
    return sides
