"""The languages that prompts name, and how the language of a sample is guessed if its record does not state it.

One rule for all kinds of sources: `guess_language` of the text that the model must write, because the prompt says in
which language to write it ("Generate the caption in English:").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qwenvl_jax.data.tags import normal_form
from qwenvl_jax.runtime.errors import UserError

LANGUAGES = {"en": "English", "zh": "Chinese"}

# Keys of a content whose texts the model must write, in the turns of an assistant "ref" too; and those of other texts.
# The text of a system counts as neither: it is often English whatever the language of the dialogue is.
WRITTEN_TEXTS = ("answer", "caption", "description", "text")
OTHER_TEXTS = ("phrase", "question", "ref")

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def language_name(code: str) -> str:
    """The name of a language in prompts: "en" -> "English", "zh" (or "zh_CN", "zh-TW") -> "Chinese".

    Raises:
      UserError: for a language that no prompt of the model names.
    """
    name = LANGUAGES.get(code.replace("-", "_").split("_")[0].lower())
    if name is None:
        raise UserError(f"language {code!r} has no prompt; use one of {', '.join(LANGUAGES)}")
    return name


def guess_language(text: str) -> str:
    """The language of a text that does not state it: "zh" if at least half of its letters are Chinese, else "en"."""
    if text.isascii():
        return "en"
    text = normal_form(text)  # the letters of Korean words would be counted one by one otherwise
    letters = sum(map(str.isalpha, text))
    return "zh" if letters and 2 * len(_HAN.findall(text)) >= letters else "en"


def language_of(content: Any) -> str:
    """The guessed language of a sample, from its content (`data.tasks`); it need not be checked.

    If the text that the model must write has no letters, for example if the answer is a number or a box, all texts of
    the sample count.
    """
    written = " ".join(_texts(content, WRITTEN_TEXTS, written=True))
    if any(map(str.isalpha, written)):
        return guess_language(written)
    return guess_language(" ".join(_texts(content, (*WRITTEN_TEXTS, *OTHER_TEXTS), written=False)))


def _texts(value: Any, keys: tuple[str, ...], written: bool) -> Iterator[str]:
    """The texts under some keys, at any depth; with `written` only those that the model must write."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, keys, written)
    elif isinstance(value, dict):
        if written and "role" in value:  # a turn of a dialogue
            if value["role"] != "assistant":
                return
            keys = (*keys, "ref")
        for key, entry in value.items():
            if isinstance(entry, str) and key in keys:
                yield entry
            else:
                yield from _texts(entry, keys, written)
