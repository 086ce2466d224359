"""The recipe of every corpus: its rules with their settings (paper, appendix A).

python -m data_pipelines.recipes.table      # the table of docs/cleaning.md
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.clean.across import AcrossRule
from data_pipelines.clean.rule import Rule
from data_pipelines.recipes import annotated, captioned, pages

RECIPES: dict[str, tuple[Rule, ...]] = {}
RECIPES |= captioned.RECIPES
RECIPES |= annotated.RECIPES
RECIPES |= pages.RECIPES

# The rules across pairs, in order; they see the pairs that the recipe leaves. A later one sees those that the earlier
# ones leave.
ACROSS: dict[str, tuple[AcrossRule, ...]] = {}
ACROSS |= captioned.ACROSS


def table() -> str:
    """All recipes as a table in Markdown: corpora with the same recipe share a row."""
    corpora: dict[tuple[str, str], list[str]] = {}
    for name, recipe in sorted(RECIPES.items()):
        rules = ", ".join(_described(each.name, dict(each.settings)) for each in recipe)
        across = ", ".join(_described(each.name, _settings(each)) for each in ACROSS.get(name, ()))
        corpora.setdefault((rules, across), []).append(name)
    rows = ["| corpora | rules, in order | across pairs |", "|---|---|---|"]
    rows += [f"| {', '.join(names)} | {rules or '-'} | {across or '-'} |" for (rules, across), names in corpora.items()]
    return "\n".join(rows)


def _settings(across: AcrossRule) -> dict[str, object]:
    return {key: value for key, value in across.as_json().items() if key != "rule"}


def _described(name: str, settings: Mapping[str, object]) -> str:
    values = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"`{name}({values})`" if values else f"`{name}`"


if __name__ == "__main__":
    print(table())
