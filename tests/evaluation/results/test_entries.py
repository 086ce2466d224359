"""results.json: to a file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.evaluation.results.entries import RESULTS, Entry, read_results, write_results
from qwenvl_jax.evaluation.results.figures import Comparison, Figure
from qwenvl_jax.runtime.errors import UserError

finite = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | finite
names = st.text(max_size=8)
counts = st.integers(0, 9)
leaf = st.builds(Figure, finite, finite, counts, counts, maybe, maybe, maybe, maybe, maybe, reason=names)
figures = st.recursive(
    leaf,
    lambda inner: st.builds(
        Figure,
        finite,
        finite,
        counts,
        counts,
        figures=st.dictionaries(names, inner, max_size=3),
        upstream_exact=st.none() | inner,
        clean=st.none() | inner,
    ),
    max_leaves=5,
)
comparisons = st.recursive(
    st.builds(Comparison, finite, finite, counts, counts, counts, maybe, maybe, maybe, maybe, maybe),
    lambda inner: st.builds(
        Comparison, finite, finite, counts, counts, counts, figures=st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=3,
)
entries = st.builds(
    Entry,
    *[names, names, counts, names, names, counts, st.booleans(), names, names, names, counts, counts, finite, counts],
    figures=st.dictionaries(names, figures, max_size=3),
    comparisons=st.dictionaries(names, comparisons, max_size=3),
)


@given(st.lists(entries, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_entries_go_to_a_file_and_back(tmp_path: Path, some: list[Entry]) -> None:
    folder = epath.Path(tmp_path)
    write_results(folder, some)
    back = read_results(folder)
    assert back == some
    assert [list(entry.figures) for entry in back] == [list(entry.figures) for entry in some]
    json.loads((tmp_path / RESULTS).read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 0, "entries": []}', '{"version": 1, "entries": [{"a": 1}]}'])
def test_results_of_another_version_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(UserError, match="another version"):
        read_results(epath.Path(tmp_path))


def test_tokens_per_right_answer() -> None:
    figure = Figure(0.5, 100.0, 20, 20, right=10.0)
    entry = Entry("a", "", 1, "b", "b", 0, False, "", "", "", 20, 0, 1.0, 50, {"accuracy": figure}, {})
    assert entry.tokens_per_right_answer == 5.0
    none_right = {"accuracy": Figure(0.0, 100.0, 20, 20, right=0.0)}
    assert Entry(*[*list(vars(entry).values())[:-2], none_right, {}]).tokens_per_right_answer is None
