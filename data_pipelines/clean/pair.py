"""Rules on facts about a pair: its scores, by the corpus or by CLIP (paper, A.1, step 3), and its stated language."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from data_pipelines.clean.rewriting import drop_texts
from data_pipelines.clean.rule import Dropped, Verdict
from data_pipelines.pair import RawPair
from qwenvl_jax.data.languages import guess_language


def score_at_least(pair: RawPair, column: str, least: float) -> Verdict:
    """Drops pairs whose score is below `least`, missing, or not a number.

    Args:
      pair: with its scores.
      column: the name of the score, such as "similarity" of LAION, or "clip" for the one that a run computes.
      least: cosine similarity of picture and text.
    """
    score = pair.scores.get(column)
    if score is None:
        return Dropped(f"no {column}")
    if math.isnan(score):
        return Dropped(f"{column} is not a number")
    return pair if score >= least else Dropped(f"{column} too low")


def least_for_share(scores: Iterable[float], share: float) -> float:
    """The threshold that `share` of the scores reach, to calibrate `score_at_least`; NaNs are left out.

    Raises:
      ValueError: if there is no score, or the share is not within (0, 1].
    """
    known = np.array([score for score in scores if not math.isnan(score)])
    if not known.size or not 0 < share <= 1:
        raise ValueError(f"{known.size} scores and a share of {share} define no threshold")
    return float(np.sort(known)[::-1][max(math.ceil(share * known.size), 1) - 1])


def watermark_at_most(pair: RawPair, column: str, most: float) -> Verdict:
    """Drops pairs whose probability of a watermark, the corpus' own, is above `most`; without one they stay."""
    return Dropped("a watermark") if pair.scores.get(column, 0.0) > most else pair


def unsafe_at_most(pair: RawPair, column: str, most: float) -> Verdict:
    """Drops pairs whose probability of unsafe content, the corpus' own, is above `most`; without one they stay."""
    return Dropped("unsafe") if pair.scores.get(column, 0.0) > most else pair


def language_matches(pair: RawPair, language: str) -> Verdict:
    """Drops pairs that are stated to be in another language, and texts that are mainly in another one.

    Args:
      pair: after the rules on texts.
      language: "en" or "zh".
    """
    if pair.language and pair.language.replace("-", "_").split("_")[0].lower() != language:
        return Dropped("stated to be in another language")
    return drop_texts(pair, lambda text: "" if guess_language(text) == language else f"not mainly {language}")
