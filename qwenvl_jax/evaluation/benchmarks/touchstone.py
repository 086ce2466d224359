"""TouchStone: open questions that a judge scores against a reference answer (paper, Table 7; OFA-Sys/TouchStone)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published, truth_of
from qwenvl_jax.evaluation.metrics.metric import Scores

DIALOGUE = Form(Template("{images|Picture #: <img>\n}{question}"), chat=True)

SCORE = "touchstone"
ROUNDS = 2  # the second one has the two answers swapped

# (score of the answer, score of the reference answer) of one round.
Round = tuple[float, float | None]


def judged_score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """The mean score over all rounds that the judge has scored, from 1 to 10; papers print 100 times as much.

    `figures` has it for every category (a question may have several), the mean "reference" of the reference answers,
    and the share "judged" of the rounds that have a score. A question that could not be asked scores 0.

    Args:
      rows: with `verdict`, as `judge.judge_rows` adds it. Rounds without a score count nowhere.

    Returns:
      Nothing if the judge has scored no round.
    """
    rounds = [_rounds(row) for row in rows]
    references = [reference for scores in rounds for _, reference in scores if reference is not None]
    if not references:
        return {}
    count = sum(map(len, rounds))
    values = tuple(sum(answer for answer, _ in scores) / max(1, len(scores)) for scores in rounds)
    weights = tuple(len(scores) / count for scores in rounds)
    members: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for number, (row, scores) in enumerate(zip(rows, rounds, strict=True)):
        for category in filter(None, map(str.strip, truth_of(row).category.split(","))):
            members.setdefault(category, []).extend(answer for answer, _ in scores)
            counts.setdefault(category, [0] * len(rows))[number] += len(scores)
    figures = {name: sum(group) / len(group) for name, group in sorted(members.items()) if group}
    of_categories = {name: tuple(each / len(members[name]) for each in counts[name]) for name in figures}
    figures["reference"] = sum(references) / len(references)
    figures["judged"] = count / (ROUNDS * len(rows))
    aggregate = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return {SCORE: Scores(aggregate, values, weights, figures, of_categories, bounded=False)}


def _rounds(row: Mapping[str, Any]) -> list[Round]:
    if row.get("unanswered"):
        return [(0.0, None)] * ROUNDS
    verdict: Mapping[str, Any] = row.get("verdict") or {}
    return [(answer, reference) for answer, reference in verdict.get("scores", ())]


_NOTE = (
    "A judge scores the answers (--judge). The published figures have GPT-4 as judge; another judge gives other ones. "
    "How the released model was prompted is not published; here each picture is announced by its number, as in its "
    "chat."
)

BENCHMARKS = (
    published(
        "touchstone_en",
        "TouchStone, English",
        DIALOGUE,
        score=judged_score,
        judged=True,
        corpus="touchstone",
        split="en",
        table="7",
        max_new_tokens=512,
        paper={"Qwen-VL-Chat": 645.2},
        note=f"{_NOTE} The release's README has 711.6 for Qwen-VL-Chat-1.1 and 651.4 for its Int4 weights.",
    ),
    published(
        "touchstone_cn",
        "TouchStone, Chinese",
        DIALOGUE,
        score=judged_score,
        judged=True,
        corpus="touchstone",
        split="zh",
        table="7",
        max_new_tokens=512,
        paper={"Qwen-VL-Chat": 401.2},
        note=f"{_NOTE} The Chinese instruction of the judge is not published; it is asked in English. The release's "
        "README has 481.7 for Qwen-VL-Chat-1.1 and 386.6 for the Int4 weights.",
    ),
)
