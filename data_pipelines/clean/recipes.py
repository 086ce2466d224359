"""Which rules clean which corpus (paper, appendix A): one recipe per corpus, with the settings of that data set."""

from __future__ import annotations

from data_pipelines.clean.rule import Rule

RECIPES: dict[str, tuple[Rule, ...]] = {}
