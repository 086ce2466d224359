"""The recipe of every evaluation set: no cleaning, because a score counts only if the whole benchmark is asked."""

from __future__ import annotations

from data_pipelines.clean.evaluation import evaluation_pictures
from data_pipelines.clean.rule import Rule, rule

EVALUATION_RECIPE: tuple[Rule, ...] = (rule(evaluation_pictures),)
