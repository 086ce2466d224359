"""The languages that prompts name."""

from __future__ import annotations

import re

from qwenvl_jax.runtime.errors import UserError

LANGUAGES = {"en": "English", "zh": "Chinese"}

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
    letters = sum(character.isalpha() for character in text)
    return "zh" if letters and 2 * len(_HAN.findall(text)) >= letters else "en"
