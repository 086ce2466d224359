"""Answers and truths of every kind, drawn from a seed: usual, Unicode, empty and hostile ones."""

from __future__ import annotations

import random

_WORDS = str.split(
    "a an the red dog cat two 2 ten none zero yes no it's its isnt dont can't wouldve someone'd yall o'clock U.S. 3.5 "
    "1,000 1,5 50% net left-hand t-shirt red/blue (ok) [x] {y} a+b c=d e_f <g> @h `i` j; k? l! m, caf\u00e9 cafe\u0301 "
    "\u72d7 \u732b \U0001f436 \u0130stanbul \u00df \ufb01sh NaN inf -0 1e3 .5 5. is are of sofa on "
    "Dog DOG dog. dog, A B"
)
_GLUE = (" ", " ", " ", " ", "", "  ", "\n", "\t", ", ", ". ", "-", " of ", "\u00a0")


def text(draw: random.Random, longest: int = 4) -> str:
    """A text of up to `longest` words; now and then empty or only white space."""
    if draw.random() < 0.03:
        return draw.choice(("", " ", "\n", ".", "  . ", "the"))
    words = [draw.choice(_WORDS) for _ in range(draw.randint(1, longest))]
    return "".join(word + draw.choice(_GLUE) for word in words[:-1]) + words[-1]


def annotators(draw: random.Random) -> tuple[str, list[str]]:
    """An answer and ten annotated ones, of which many agree with it, exactly or nearly."""
    pool = [text(draw, 3) for _ in range(draw.randint(1, 3))]
    pool += [draw.choice((word.upper(), word + ".", " " + word, "the " + word, word)) for word in pool]
    answers = [draw.choice(pool) for _ in range(10)]
    return draw.choice((*pool, text(draw))), answers


def numbers(draw: random.Random) -> tuple[str, list[str]]:
    """An answer of ChartQA and its truths: numbers near each other, percentages, units, texts."""
    value = draw.choice((0, 1, 0.5, 12, 100, 1999, 0.031, -4, draw.uniform(-50, 50)))
    factor = draw.choice((1, 1, 0.95, 1.05, 0.951, 1.049, 1.0527, 0.9499, 1.06, 100, 0.01, -1))
    forms = ("{}", "{:.0f}", "{:.2f}", "{}%", " {} ", "{} USD", "{:,.1f}", "{:e}")
    truth = draw.choice(forms).format(value)
    answer = draw.choice(forms).format(value * factor)
    if draw.random() < 0.2:
        truth = text(draw, 2)
        answer = draw.choice((truth, truth.upper(), f" {truth} ", text(draw, 2)))
    return answer, [truth, *(text(draw, 1) for _ in range(draw.randint(0, 1)))]


def similar(draw: random.Random) -> tuple[str, list[str]]:
    """An answer and truths that differ from it by some edits, case and white space."""
    answer = text(draw, 6)
    truths = []
    for _ in range(draw.randint(1, 4)):
        letters = list(draw.choice((answer, answer, text(draw, 6))))
        for _ in range(draw.randint(0, 6)):
            letters.insert(draw.randint(0, len(letters)), draw.choice("ab \u00e9"))
        truths.append("".join(letters).upper() if draw.random() < 0.2 else "".join(letters))
    return answer, truths


def gqa(draw: random.Random) -> tuple[str, list[str]]:
    """A sentence and the short truth that it may contain."""
    truth = text(draw, 2)
    start = draw.choice(("", "", "it is ", "they are ", "the ", "a ", "an ", "sofa ", "Yes, "))
    return start + truth + draw.choice(("", "", ".", "!", " of wood", ", maybe", ". It is.")), [truth]


def mme(draw: random.Random) -> list[tuple[str, str, str, str]]:
    """Answers, truths, images and subtasks of a small MME: two questions about each of some images."""
    rows = []
    for subtask in draw.sample(("existence", "count", "OCR", "artwork", "text_translation", "code_reasoning"), 3):
        for image in range(draw.randint(1, 20)):
            for true in draw.sample(("Yes", "No"), 2):
                other = draw.choice(
                    ("", "not", "I know", " yes", "ano", "maybe", "yes and no", "Nope.", "YES", "no", text(draw))
                )
                answer = draw.choice((true, true, true.lower() + ", it is.", other))
                rows.append((answer, true, f"{image}.jpg", subtask))
    return rows


def rotations(draw: random.Random) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """The answers, right letters and options of one to four rotations of a question of MMBench."""
    options = draw.sample(("red", "a dog", "3", "\u72d7", "none of them", "A"), draw.randint(2, 4))
    right = draw.choice(options)
    answers = []
    letters = []
    rotated = []
    for turn in range(draw.choice((1, len(options), len(options)))):
        order = tuple(options[turn:] + options[:turn])
        rotated.append(order)
        letters.append("ABCD"[order.index(right)])
        chosen = right if draw.random() < 0.7 else draw.choice(options)
        answers.append("ABCD"[order.index(chosen)])
    return answers, letters, rotated
