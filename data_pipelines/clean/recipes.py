"""Which rules clean which corpus (paper, appendix A): one recipe per corpus, with the settings of that data set."""

from __future__ import annotations

from data_pipelines.clean import annotated, pages
from data_pipelines.clean.across import AcrossRule
from data_pipelines.clean.rule import Rule

RECIPES: dict[str, tuple[Rule, ...]] = {}
RECIPES |= annotated.RECIPES
RECIPES |= pages.RECIPES

# The rules across pairs, in order; they see the pairs that the recipe leaves. A later one sees those that the earlier
# ones leave.
ACROSS: dict[str, tuple[AcrossRule, ...]] = {}
