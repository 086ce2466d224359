"""Writes values as YAML: block style, and quotes around every text that YAML could read as anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
# Words that YAML 1.1 takes for booleans and nothing, in any case.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
# Letters that a YAML file may not hold as they are, and line breaks of Unicode, which it would fold.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def dump(value: Any) -> str:
    """A document of mappings, sequences, texts, numbers and booleans, as YAML with a line break at the end."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            lines += _entry(f"{_scalar(key)}:", item, "  ")
        return lines
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        lines = []
        for item in value:
            first, *others = _lines(item)
            lines.append(f"- {first}")
            lines += [f"  {line}" for line in others]
        return lines
    return [_scalar(value)]


def _entry(head: str, item: Any, indent: str) -> list[str]:
    """A key with its value: on the same line, or below it and indented."""
    nested = isinstance(item, Mapping | Sequence) and not isinstance(item, str) and item
    if nested and not (isinstance(item, Sequence) and all(isinstance(number, int) for number in item)):
        return [head, *(indent + line for line in _lines(item))]
    return [f"{head} {_scalar(item)}"]


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
