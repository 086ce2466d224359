"""All public corpora, one entry each; training and evaluation share it. See `corpus` for the fields."""

from __future__ import annotations

from data_pipelines.corpora.corpus import Corpus

CORPORA: dict[str, Corpus] = {}
