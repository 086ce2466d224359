"""A benchmark as one value: how its records become questions, how answers are read, and how all of them are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.metrics.metric import Scores

UNANSWERED = "unanswered"  # the key of the reason in a row, and of the list of such questions in scores.json
UPSTREAM = "_upstream_exact"  # the ending of the names of figures by the rules of the released scripts


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
      id: unique in the benchmark.
      pieces: the prompt.
      images: encoded images, which the pieces refer to by index.
      about: JSON values that are needed to read and score the answer, such as the truth and the image's size.
      options: the answers whose likelihoods are compared, such as " A", " B"; empty if the answer is generated.
    """

    id: str
    pieces: tuple[Piece, ...]
    images: tuple[bytes, ...]
    about: dict[str, Any]
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Asking:
    """How questions are asked, as far as it is not the benchmark's.

    Attributes:
      style: the prompt style of held-out records of training tasks (`data.tasks.PROMPT_STYLES`).
      template: replaces the benchmark's prompt (`prompts.Template`); "" keeps it.
      exemplars: (record, number of the question in it) -> answered questions that are shown before it; None for none.
    """

    style: str = "released"
    template: str = ""
    exemplars: Callable[[Record, int], Sequence[Exemplar]] | None = None


@dataclasses.dataclass(frozen=True)
class Exemplar:
    """An answered question for a few-shot prompt: its values in an evaluation record, and the images it shows."""

    question: Mapping[str, Any]
    language: str
    images: tuple[bytes, ...]


# (rows of predictions in any order) -> the figures by name, the main one first.
Score = Callable[[Sequence[dict[str, Any]]], dict[str, Scores]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: as in the evaluation config.
      title: for tables, such as "VQAv2 val".
      questions: (record, asking) -> questions. Raises UserError if a record cannot be scored.
      read: (text of the answer, with special tokens written out, `about`) -> JSON values of one row of predictions. If
        options were compared, the text is the best option.
      unanswered: `about` -> the row of a question that could not be asked; it scores nothing.
      score: see `Score`.
      task: of its records.
      stops: the special tokens that end an answer, written out.
      max_new_tokens: the largest number of generated tokens.
      min_new_tokens: generated tokens before which no stop token may be chosen.
      last_tokens: a prompt of more than one token above this number keeps only its last ones, this many (the released
        evaluate_mmlu.py: 2,047 of more than 2,048); 0 keeps all.
      corpus, split: of its records: the entry of `data_pipelines.corpora.table`.
      prompt: the text of its prompt (`prompts.Template`).
      metric: one of `metrics.registry.METRICS`; "" if it has a rule of its own.
      compared: whether the likelihoods of options are compared.
      table: of the paper that it belongs to, such as "4".
      paper: the paper's main figure by model, such as {"Qwen-VL": 79.5}, in the unit of the paper.
      paper_figures: the paper's further figures by their name in `Scores.figures`, then by model, in the same unit.
      unit: the factor between a score and the number in papers (100 for shares).
      shots: answered questions before each, unless the config says otherwise.
      exemplar_split: the split of `corpus` from which these are taken.
      exemplar_choice: "random", or "category": the first ones of the same category, as MMLU asks.
      submission: (rows) -> the files for the benchmark's server by name (`submissions`); None if it has no server.
      judged: whether a language model has to score the answers first (`judge`).
      hidden: whether the truth is only known to a server, so that nothing can be scored here.
      note: what a reader of the table must know, in one sentence; "" for nothing.
    """

    name: str
    title: str
    questions: Callable[[Record, Asking], list[Question]]
    read: Callable[[str, dict[str, Any]], dict[str, Any]]
    unanswered: Callable[[dict[str, Any]], dict[str, Any]]
    score: Score
    task: str = EVALUATION
    stops: tuple[str, ...] = (tags.ENDOFTEXT,)
    max_new_tokens: int = 1
    min_new_tokens: int = 0
    last_tokens: int = 0
    corpus: str = ""
    split: str = ""
    prompt: str = ""
    metric: str = ""
    compared: bool = False
    table: str = ""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    paper_figures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    unit: float = 100.0
    shots: int = 0
    exemplar_split: str = ""
    exemplar_choice: str = "random"
    submission: Callable[[Sequence[Mapping[str, Any]]], dict[str, bytes]] | None = None
    judged: bool = False
    hidden: bool = False
    note: str = ""


def without_tags(text: str) -> str:
    """The text without special tokens (the released scripts' skip_special_tokens), in its normal form."""
    for tag in (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS):
        text = text.replace(tag, "")
    return tags.normal_form(text)  # after the tags are gone: an accent may have followed one
