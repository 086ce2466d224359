"""Every corpus has a recipe that its fixture passes through, and the docs show the settings that are used."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.clean import text
from data_pipelines.clean.pair import least_for_share
from data_pipelines.clean.rule import count, judge, new_counts
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from data_pipelines.recipes.captioned import REMAINING
from data_pipelines.recipes.table import ACROSS, RECIPES, table
from qwenvl_jax.data.images.exact import decode_image
from tests.support.corpora.table import FIXTURES

ROOT = Path(__file__).parents[3]


def test_every_corpus_has_a_recipe() -> None:
    assert {name for name, corpus in CORPORA.items() if corpus.tasks != ("evaluation",)} == set(RECIPES)
    assert set(ACROSS) <= set(RECIPES) and set(REMAINING) <= set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_well_formed(name: str) -> None:
    names = [each.name for each in RECIPES[name]]
    across = [each.name for each in ACROSS.get(name, ())]
    assert len(set(names + across)) == len(names + across)  # each is counted by its name
    rewriting = [names.index(each.name) for each in text.REWRITING if each.name in names]
    assert rewriting == sorted(rewriting)
    for early, late in (("white_space", "emoji"), ("open_pictures", "smallest_side"), ("text_length", "open_pictures")):
        if early in names and late in names:
            assert names.index(early) < names.index(late)
    facts = [each.as_json() for each in RECIPES[name]] + [each.as_json() for each in ACROSS.get(name, ())]
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"html_pages", "pdf_pages", "synthetic_pages"}))
def test_fixtures_pass_through_their_recipes(name: str, tmp_path: Path) -> None:
    FIXTURES[name](tmp_path)
    recipe = RECIPES[name]
    counts = new_counts(recipe)
    outcomes: collections.Counter[str] = collections.Counter()
    for split in CORPORA[name].splits:
        for row in CORPORA[name].read(tmp_path, split):
            if not isinstance(row, RawPair):
                continue
            try:
                judged = judge(recipe, row)
            except OSError:
                outcomes["picture missing"] += 1
                continue
            count(recipe, judged, counts)
            outcomes["dropped" if judged.dropped else "kept"] += 1
            if judged.dropped is None:
                assert judge(recipe, judged.pair).pair == judged.pair
                for picture in judged.pair.pictures:
                    assert decode_image(picture.read()).size == (picture.width, picture.height)
                for across in ACROSS.get(name, ()):
                    candidate = across.candidate(judged.pair)
                    assert candidate is None or len(candidate.signature) == across.signature_bytes
    assert outcomes["kept"] + outcomes["dropped"] > 0
    assert sum(each.dropped.total() for each in counts.values()) == outcomes["dropped"]
    if recipe:
        assert counts[recipe[0].name].seen == outcomes["kept"] + outcomes["dropped"]


def test_the_docs_have_the_table() -> None:
    assert table() in (ROOT / "docs/cleaning.md").read_text()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_threshold_keeps_the_wanted_share(scores: list[float], share: float) -> None:
    least = least_for_share([*scores, math.nan], share)
    kept = np.mean([score >= least for score in scores])
    above = np.mean([score > least for score in scores])
    assert above < share <= kept + 1e-9


def test_a_threshold_needs_scores() -> None:
    with pytest.raises(ValueError, match="define no threshold"):
        least_for_share([math.nan], 0.5)
