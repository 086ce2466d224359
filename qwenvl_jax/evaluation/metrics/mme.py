"""MME: yes-or-no questions in pairs, one right "yes" and one right "no" about each image.

Source: Fu et al. 2023 (arXiv 2306.13394) and its calculation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.evaluation.metrics.metric import Scores, Truth, required_answers, weights_of_parts
from qwenvl_jax.runtime.errors import UserError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

# The words are looked for in so many characters at the start of an answer.
_PREFIX = 4


def yes_or_no(answer: str) -> str:
    """ "yes", "no" or "other": the word that the answer starts with, case ignored. "other" is always wrong.

    As in calculation.py the word may be anywhere in the first four characters, so that "not" and "I know" are "no".
    """
    text = answer.lower()
    prefix = text[:_PREFIX]
    for word in ("yes", "no"):
        if text == word or word in prefix:
            return word
    return "other"


def mme(answers: Sequence[str], truths: Sequence[Truth]) -> Scores:
    """The sum over subtasks of 100 x (accuracy + share of images of which all questions are answered rightly).

    `Truth.category` is the subtask, `Truth.group` the image within it. `figures` has the sums "perception" (at most
    2000) and "cognition" (at most 800), and of each subtask its score, "<subtask>_acc" and "<subtask>_acc_plus". Other
    subtasks count only in the aggregate.

    A question has the value 100 x (right + image right), so it ranges from 0 to 200.

    Raises:
      UserError: if a truth is neither yes nor no.
    """
    right = []
    subtasks: dict[str, dict[object, list[int]]] = {}
    for number, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        true = required_answers(truth)[0].strip().lower()
        if true not in ("yes", "no"):
            raise UserError(f"the truth {true!r} of a question of MME is neither yes nor no; correct its annotation")
        right.append(float(yes_or_no(answer) == true))
        subtasks.setdefault(truth.category, {}).setdefault(truth.group or number, []).append(number)
    values = [0.0] * len(right)
    weights = [0.0] * len(right)
    figures: dict[str, float] = {}
    for subtask, images in subtasks.items():
        questions = [number for image in images.values() for number in image]
        whole = {number: float(all(right[other] for other in image)) for image in images.values() for number in image}
        accuracy = sum(right[number] for number in questions) / len(questions)
        accuracy_plus = sum(whole[image[0]] for image in images.values()) / len(images)
        figures |= {
            subtask: 100 * (accuracy + accuracy_plus),
            f"{subtask}_acc": accuracy,
            f"{subtask}_acc_plus": accuracy_plus,
        }
        for image in images.values():
            for number in image:
                weights[number] = 1 / len(questions)
                # An image counts once in accuracy+, however many questions it has.
                share = len(questions) / (len(images) * len(image))
                values[number] = 100 * (right[number] + whole[number] * share)
    sums = {"perception": PERCEPTION, "cognition": COGNITION}
    totals = {name: sum(figures.get(subtask, 0.0) for subtask in members) for name, members in sums.items()}
    parts = tuple(truth.category for truth in truths)
    return Scores(
        sum(figures[subtask] for subtask in subtasks),
        tuple(values),
        tuple(weights),
        totals | figures,
        {name: _weights_within(members, parts, weights) for name, members in sums.items()} | weights_of_parts(parts),
        parts,
        bounded=False,
    )


def _weights_within(subtasks: Sequence[str], parts: Sequence[str], weights: Sequence[float]) -> tuple[float, ...]:
    """The weights of the questions of some subtasks; the others have none."""
    return tuple(weight if part in subtasks else 0.0 for part, weight in zip(parts, weights, strict=True))
