"""Dialogues of up to three questions about one or two pictures: of scenes or of words.

A question may depend on earlier turns ("Where is it?" after "Which picture shows the fox?"), so a model has to use the
whole conversation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.quickstart.ocr_pictures import OcrPicture
from data_pipelines.quickstart.scenes import Scene, SceneObject
from data_pipelines.quickstart.sentences import CLEAR_GAP, capitalized, ends, enumeration
from qwenvl_jax.data.dialogues import DEFAULT_SYSTEM, Part, Turn
from qwenvl_jax.data.schema import Record

_TWO_PICTURES_SHARE = 0.7


_TEXTS = {
    "en": {
        "describe": "What is in Picture {n}?",
        "describe_next": "And in Picture {n}?",
        "which": "Which picture shows {name}?",
        "which_says": "Which picture says {text}?",
        "picture": "Picture {n}.",
        "where": "Where is the {noun} in Picture {n}?",
        "where_it": "Where is it?",
        "ref": "The {noun}",
        "count": "How many objects are in Picture {n}?",
        "left": "What is on the left in Picture {n}?",
        "right": "What is on the right in Picture {n}?",
        "read": "Read the text in Picture {n}.",
        "end": ".",
    },
    "zh": {
        "describe": "图{n}里有什么？",
        "describe_next": "图{n}呢？",
        "which": "哪张图里有{name}？",
        "which_says": "哪张图里写着{text}？",
        "picture": "图{n}。",
        "where": "图{n}里的{noun}在哪里？",
        "where_it": "它在哪里？",
        "ref": "{noun}",
        "count": "图{n}里有几样东西？",
        "left": "图{n}的左边是什么？",
        "right": "图{n}的右边是什么？",
        "read": "读出图{n}里的文字。",
        "end": "。",
    },
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a dialogue with its JPEG, and its licence as an SPDX expression."""

    content: Scene | OcrPicture
    jpeg: bytes
    license: str = ""

    @property
    def side(self) -> int:
        """Side of the square picture in pixels."""
        return int(self.content.image_HWC.shape[0])


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
      question: the text of the user's turn.
      answer: the parts of the assistant's turn.
      about: the picture's index and the object that "it" refers to in the next turn, if any.
      described: index of the picture whose objects the answer lists, if it does.
    """

    question: str
    answer: list[Part]
    about: tuple[int, SceneObject] | None = None
    described: int | None = None


def converse(rng: np.random.Generator, pictures: Sequence[Picture], language: str, number: str, source: str) -> Record:
    """A dialogue about the first of `pictures`, or about the first two in random order.

    Args:
      rng: consumed; equal states give equal dialogues.
      pictures: at least two.
      language: "en" or "zh".
      number: ends the id of the record, e.g. "train-000017".
      source: of the record.
    """
    texts = _TEXTS[language]
    shown = list(pictures[: 2 if rng.random() < _TWO_PICTURES_SHARE else 1])
    if rng.integers(2):
        shown.reverse()
    exchanges: list[Exchange] = []
    for _ in range(int(rng.integers(2, 4))):
        choices = _choices(rng, shown, texts, language, exchanges)
        asked = {exchange.question for exchange in exchanges}
        choices = [choice for choice in choices if choice.question not in asked]
        if choices:
            exchanges.append(choices[rng.integers(len(choices))])
    turns: list[Turn] = []
    for index, exchange in enumerate(exchanges):
        images: list[Part] = [{"image": i} for i in range(len(shown))] if index == 0 else []
        turns.append({"role": "user", "parts": [*images, {"text": exchange.question}]})
        turns.append({"role": "assistant", "parts": exchange.answer})
    return Record(
        id=f"dialogue-{number}",
        task="dialogue",
        source=source,
        language=language,
        license=" AND ".join(dict.fromkeys(part for picture in shown for part in picture.license.split(" AND "))),
        images=tuple(picture.jpeg for picture in shown),
        content={"system": DEFAULT_SYSTEM, "turns": turns, "sizes": [[p.side, p.side] for p in shown]},
    )


def _choices(
    rng: np.random.Generator,
    shown: Sequence[Picture],
    texts: dict[str, str],
    language: str,
    before: Sequence[Exchange],
) -> list[Exchange]:
    """The exchanges that may come next: one of every kind that fits, or by chance only a follow-up on the last one."""
    last = before[-1] if before else None
    if last and last.about and rng.random() < 0.6:
        return [_where(*last.about, texts, language, texts["where_it"])]
    if last and last.described is not None and len(shown) == 2 and rng.random() < 0.5:
        other = 1 - last.described
        return [_describe(other, shown[other].content, texts, language, texts["describe_next"])]
    choices = []
    for index, picture in enumerate(shown):
        content = picture.content
        choices.append(_describe(index, content, texts, language, texts["describe"]))
        n = index + 1
        if isinstance(content, OcrPicture):
            others = {word for p in shown if p is not picture for word in _words_of(p.content)}
            if len(shown) == 2 and not others.issuperset(_words_of(content)):
                question = texts["which_says"].format(text=" ".join(_words_of(content)))
                choices.append(Exchange(question, [{"text": texts["picture"].format(n=n)}]))
            continue
        item = content.objects[rng.integers(len(content.objects))]
        question = texts["where"].format(noun=item.stamp.noun(language), n=n)
        choices.append(_where(index, item, texts, language, question))
        choices.append(Exchange(texts["count"].format(n=n), [{"text": f"{len(content.objects)}{texts['end']}"}]))
        for side, end in ends(content.objects, CLEAR_GAP * picture.side).items():
            if side in ("left", "right"):
                answer = capitalized(end.stamp.name(language)) + texts["end"]
                choices.append(Exchange(texts[side].format(n=n), [{"text": answer}], about=(index, end)))
        stamps = {o.stamp.id for p in shown if p is not picture for o in _objects(p)}
        if len(shown) == 2 and item.stamp.id not in stamps:
            question = texts["which"].format(name=item.stamp.name(language))
            choices.append(Exchange(question, [{"text": texts["picture"].format(n=n)}], about=(index, item)))
    return choices


def _describe(index: int, content: Scene | OcrPicture, texts: dict[str, str], language: str, question: str) -> Exchange:
    """Asks for the objects of a scene, or for the text of a picture of words."""
    if isinstance(content, OcrPicture):
        return Exchange(texts["read"].format(n=index + 1), [{"text": " ".join(_words_of(content))}])
    names = capitalized(enumeration([o.stamp.name(language) for o in content.objects], language))
    return Exchange(question.format(n=index + 1), [{"text": names + texts["end"]}], described=index)


def _where(index: int, item: SceneObject, texts: dict[str, str], language: str, question: str) -> Exchange:
    """Asks where an object is; the answer is its box."""
    ref = texts["ref"].format(noun=item.stamp.noun(language))
    return Exchange(question, [{"ref": ref, "boxes": [list(item.box)], "image": index}])


def _words_of(content: Scene | OcrPicture) -> list[str]:
    """The words of a picture of words, from top to bottom; of a scene, none."""
    return [line.text for line in content.lines] if isinstance(content, OcrPicture) else []


def _objects(picture: Picture) -> tuple[SceneObject, ...]:
    return () if isinstance(picture.content, OcrPicture) else picture.content.objects
