"""Streams of JSON entries against the parser of the standard library, and on damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.json_index import indexed
from data_pipelines.corpora.json_stream import BLOCK, Entry, entries
from data_pipelines.corpora.rows import BadRow
from qwenvl_jax.runtime.errors import UserError

texts = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
blocks = st.sampled_from((1, 2, 7, 64, BLOCK))
REST = "rest of the file unreadable"


def read(path: Path, text: str | bytes, key: str = "", block: int = BLOCK) -> list[Entry]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(entries(path, key, block))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


@settings(max_examples=150, deadline=None)
@given(st.lists(values, max_size=5), blocks, st.sampled_from((None, 1)), st.booleans())
def test_a_list_is_read_as_by_the_standard_library(
    file: Path, rows: list[Any], block: int, indent: int | None, ascii_: bool
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    read_rows = read(file, text, block=block)
    assert [entry.value for entry in read_rows] == rows
    assert [entry.failure for entry in read_rows] == [None] * len(rows)
    assert [json.loads(text.encode()[entry.start : entry.end]) for entry in read_rows] == rows


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(texts, values, max_size=4), values, blocks)
def test_members_of_an_object_under_a_key(file: Path, rows: dict[str, Any], before: Any, block: int) -> None:
    text = json.dumps({"before": before, "rows": rows, "after": [1]}, ensure_ascii=False)
    read_rows = read(file, text, "rows", block)
    assert {entry.name: entry.value for entry in read_rows} == rows


def test_a_wrong_entry_costs_only_itself(file: Path) -> None:
    text = '[{"a": 1}, {"a": nul}, {"a": [1,,2]}, nope, {"a": "\\q"}, {"a": 2}]'
    for block in (1, 5, BLOCK):
        read_rows = read(file, text, block=block)
        reasons = [entry.failure and entry.failure.reason for entry in read_rows]
        assert reasons == [None, "not JSON", "not JSON", "not JSON", "not JSON", None]
        assert read_rows[-1].value == {"a": 2}


def test_bytes_that_are_not_utf8_cost_only_their_entry(file: Path) -> None:
    read_rows = read(file, b'[{"a": "\xff"}, {"a": "\xc3\xa9"}]')
    assert [entry.value for entry in read_rows] == [None, {"a": "é"}]
    assert read_rows[0].failure is not None
    assert read_rows[0].failure.reason == "not JSON"


def test_missing_and_doubled_commas_are_passed_over(file: Path) -> None:
    assert [entry.value for entry in read(file, "[{} {},, 3 ,]")] == [{}, {}, 3]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1}, ', '[{"a": 1}', '[{"a": 1}, "open'])
def test_the_rest_of_a_file_that_is_cut_off_is_one_failure(file: Path, text: str) -> None:
    for block in (1, BLOCK):
        first, *others = read(file, text, block=block)
        assert first.value == {"a": 1}
        assert [entry.failure and entry.failure.reason for entry in others] == [REST]


def test_deep_nesting_is_a_failure(file: Path) -> None:
    read_rows = read(file, "[" + "[" * 200_000 + "]" * 200_000 + ", 1]")
    assert read_rows[0].failure is not None
    assert "deeply" in read_rows[0].failure.detail
    assert read_rows[1].value == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(values, min_size=1, max_size=4), st.data(), blocks)
def test_a_changed_byte_never_ends_the_run(file: Path, rows: list[Any], data: st.DataObject, block: int) -> None:
    text = json.dumps({"rows": rows}).encode()
    position = data.draw(st.integers(0, len(text) - 1))
    changed = text[:position] + data.draw(st.binary(max_size=2)) + text[position + 1 :]
    try:
        read_rows = read(file, changed, "rows", block)
    except UserError:
        return  # it has no key any more
    for entry in read_rows:
        assert entry.failure is not None or json.loads(changed[entry.start : entry.end]) is not NotImplemented


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with neither"),
        ("<html>", "begins with neither"),
        ("\x1f\x8b\x08", "begins with neither"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git-LFS"),
        ("[1]", "is a list"),
        ('{"other": [1]}', "no list under 'rows'"),
        ('{"rows": 3}', "no list under 'rows'"),
    ],
)
def test_another_file_is_refused_in_one_sentence(file: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(file, text, "rows")


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    assert [entry.value for entry in read(file, b"\xef\xbb\xbf[1, 2]")] == [1, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc-"), texts), max_size=20))
def test_an_index_groups_entries_as_a_dict_of_lists_does(file: Path, rows: list[tuple[str, str]]) -> None:
    file.write_text(json.dumps({"rows": [{"group": group, "text": text} for group, text in rows]}), "utf-8")
    expected: dict[str, list[str]] = {}
    for group, text in rows:
        if group not in "-c":
            expected.setdefault(group, []).append(text)

    def group_of(name: str, value: Any) -> str | None:
        if value["group"] == "-":
            raise BadRow("no group", value["text"])
        return None if value["group"] == "c" else value["group"]

    with indexed(file, "rows", group_of) as index:
        assert {key: [value["text"] for value in index.values(key)] for key in index.keys} == expected
        assert list(index.keys) == list(expected)
        assert index.values("never") == []
        assert len(index.failures) == sum(group == "-" for group, _ in rows)
