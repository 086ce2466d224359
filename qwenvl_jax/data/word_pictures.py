"""Pictures made of words, which a text record may have instead of images, for decoders that cannot see yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from qwenvl_jax.data.content_checks import text_at
from qwenvl_jax.runtime.errors import UserError


class WordPictureContent(TypedDict):
    """The other content of a text record: a sample of the task `task`, with that task's keys.

    `words` replace the features of its picture; of several pictures, each has its own.
    """

    task: str
    words: str | Sequence[str]


def check_word_pictures(content: Mapping[str, Any], *, one: bool) -> None:
    """Raises UserError if a picture has no words, or if there are several although the task has `one`."""
    if one or isinstance(content["words"], str):
        text_at(content, "words")
        return
    words = content["words"]
    if not isinstance(words, list) or not words or not all(isinstance(each, str) and each.strip() for each in words):
        raise UserError("'words' must be the words of a picture, or a list with those of every picture")


def word_pictures(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of every picture, in their order."""
    words = content["words"]
    return (words,) if isinstance(words, str) else tuple(words)
