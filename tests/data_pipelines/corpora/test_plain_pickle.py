"""Pickles of plain data against the module `pickle`, and pickles that want more."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.plain_pickle import plain_pickle
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.grounded import python2_pickle, refs

texts = st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.integers(), inner, max_size=3)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_of_every_protocol_is_read_as_by_pickle(value: Any, protocol: int) -> None:
    payload = pickle.dumps([value, value, "the same"], protocol)
    assert plain_pickle(payload, "refs.p") == pickle.loads(payload)


def test_texts_of_python_2() -> None:
    value = [{"sent": "café", "ids": [1, 2.5, True, None]}]
    payload = python2_pickle(value)
    assert plain_pickle(payload, "refs.p") == value
    assert pickle.loads(payload, encoding="utf-8") == value
    assert plain_pickle(b"U\x02\xe9a.", "refs.p") == "éa"  # Latin-1
    assert plain_pickle(b"(lp0\nT\x03\x00\x00\x00\xc3\xa9aa.", "refs.p") == ["éa"]
    rows = refs(("train", "val"))
    assert plain_pickle(python2_pickle(rows), "refs.p") == rows


def test_one_object_twice_and_an_object_within_itself() -> None:
    shared: list[Any] = ["a"]
    first, second = plain_pickle(pickle.dumps([shared, shared]), "refs.p")
    assert first is second
    shared.append(shared)
    value = plain_pickle(pickle.dumps(shared), "refs.p")
    assert value[1] is value


class Runs:
    """Its pickle asks for a call when it is read."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: list[Any] = [
    Runs(os.system, "touch {marker}"),
    Runs(eval, "open('{marker}', 'w')"),
    print,
    collections.OrderedDict(a=1),
    datetime.date(2020, 1, 1),
    np.zeros(3),
    np.float64(1.0),
    {1, 2},
    frozenset({1}),
    b"bytes",
    bytearray(b"bytes"),
    complex(1, 2),
    Path("a"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_everything_else_is_refused_and_not_executed(value: Any, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    if isinstance(value, Runs):
        function, (argument,) = value.call
        value = Runs(function, argument.format(marker=marker))
    with pytest.raises(UserError, match="was not executed"):
        plain_pickle(pickle.dumps([{"sent": value}], protocol), "refs(unc).p")
    assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'touch {marker}'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch {marker}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {marker}'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1, a name from a registry
        b"\x80\x02Pid\n.",  # PERSID
        b"\x80\x02K\x01Q.",  # BINPERSID
        b"\x80\x02}}b.",  # BUILD
        b"\x80\x02)\x81.",  # NEWOBJ
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\xff.",
    ],
)
def test_single_operations_are_refused(payload: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with pytest.raises(UserError, match="was not executed"):
        plain_pickle(payload.replace(b"{marker}", os.fsencode(marker)), "refs.p")
    assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b".",
        b"(.",
        b"]",
        b"K\x01K\x02.",
        b"X\xff\xff\xff\xffa.",
        b"\x8b\xff\xff\xff\x7f.",
        b"g0\n.",
        b"a.",
        b"K\x01K\x02a.",
        b"(K\x01u.",
        b"}(]K\x01u.",
        b"}(K\x01u.",
        b"\x85.",
        b"(\x85.",
        b"0.",
        b"2.",
        b"Iabc\n.",
        b"Sabc\n.",
        b"I" + b"9" * 10_000 + b"\n.",
    ],
)
def test_malformed_pickles_are_refused_in_one_sentence(payload: bytes) -> None:
    with pytest.raises(UserError, match="is not a readable pickle"):
        plain_pickle(payload, "refs.p")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_plain(data: st.DataObject) -> None:
    payload = bytearray(pickle.dumps(refs(("train",)), data.draw(st.integers(0, 4))))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = plain_pickle(bytes(payload), "refs.p")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert value is None or isinstance(value, (list, dict, tuple, str, int, float))
