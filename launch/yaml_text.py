"""Writes values as YAML: PyYAML's block style, and quotes around every text that another parser could misread."""

from __future__ import annotations

import re
from typing import Any

import yaml

# PyYAML leaves `1e3` or `0o17` without quotes, which the parser of Kubernetes takes for numbers.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # sequences are indented below their key


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) else '"'  # PyYAML itself quotes words such as `yes`
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _sequence(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    numbers = all(isinstance(item, int) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=numbers)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _sequence)


def dump(value: Any) -> str:
    """A document of mappings, sequences, texts, numbers and booleans, as YAML with a line break at the end."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=float("inf"))
