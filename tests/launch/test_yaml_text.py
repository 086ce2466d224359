"""YAML that we write means the values that went in, to a parser that we did not write."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch import yaml_text

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SCALARS = st.one_of(_TEXTS, st.integers(-(10**6), 10**6), st.booleans())
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_TEXTS, _VALUES, max_size=4))
@example({"a": "yes", "No": "on", "c": "1e3", "d": "0x10", "e": "4x4", "f": "12:30:00", "g": "~", "h": "null", "i": ""})
@example(
    {"a": "- b", "b": "c: d", "c": "e #f", "d": "*g", "e": "{h", "f": "\x85\u2028\x7f\ufeff\U0001f600", "g": "\0\x1b"}
)
@example({"a": [[], {}, [1, 2], [[3]], {"b": []}], "": {"": ""}})
def test_a_parser_reads_back_the_same_values(values: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text.dump(values)) == values
