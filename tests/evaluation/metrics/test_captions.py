"""CIDEr, BLEU and ROUGE-L against pycocoevalcap."""

from __future__ import annotations

import random

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from qwenvl_jax.evaluation.metrics import captions
from qwenvl_jax.evaluation.metrics.cider import ptb_tokens
from qwenvl_jax.evaluation.metrics.metric import Truth
from qwenvl_jax.evaluation.metrics.registry import METRICS
from tests.support import caption_cases

IMAGES = 5000


def drawn(seed: str, images: int = IMAGES) -> tuple[list[str], list[list[str]]]:
    """Captions and references that share many words; some are empty, long or hostile."""
    draw = random.Random(seed)
    words = ["a", "the", "dog", "cat", "on", "in", "red", "\u72d7", "x-ray", "man's"] + [f"w{k}" for k in range(200)]

    def caption() -> str:
        if draw.random() < 0.1:
            return caption_cases.noise(draw)
        common = draw.random() < 0.7
        length = draw.choice((0, 1, 2, 3, 4, 8, 9, 10, 11, 30))
        return " ".join(draw.choice(words[:10] if common else words) for _ in range(length))

    references = [[caption() for _ in range(draw.randint(1, 5))] for _ in range(images)]
    answers = []
    for group in references:
        kept = [word for word in draw.choice(group).split(" ") if draw.random() < 0.8]
        answers.append(caption() if draw.random() < 0.3 else " ".join(kept))
    return answers, references


def as_official(answers: list[str], references: list[list[str]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    truths = {number: [ptb_tokens(text) for text in group] for number, group in enumerate(references)}
    return truths, {number: [ptb_tokens(text)] for number, text in enumerate(answers)}


def truths_of(references: list[list[str]]) -> list[Truth]:
    return [Truth(answers=tuple(group)) for group in references]


def test_cider_of_every_image_is_the_official_one() -> None:
    answers, references = drawn("cider")
    mean, each = Cider().compute_score(*as_official(answers, references))
    scores = METRICS["cider"].score(answers, truths_of(references))
    assert scores.aggregate == pytest.approx(mean, rel=1e-12)
    assert scores.per_question == pytest.approx(each.tolist(), rel=1e-9, abs=1e-12)


def test_bleu_of_the_corpus_and_of_every_image_is_the_official_one() -> None:
    answers, references = drawn("bleu")
    figures, each = Bleu(4).compute_score(*as_official(answers, references), verbose=0)
    for order in range(1, 5):
        scores = METRICS[f"bleu_{order}"].score(answers, truths_of(references))
        assert scores.aggregate == pytest.approx(figures[order - 1], rel=1e-9)
        assert scores.per_question == pytest.approx(each[order - 1], rel=1e-9, abs=1e-12)
        assert scores.weights is None


def test_rouge_l_of_every_image_is_the_official_one() -> None:
    answers, references = drawn("rouge")
    mean, each = Rouge().compute_score(*as_official(answers, references))
    scores = METRICS["rouge_l"].score(answers, truths_of(references))
    assert scores.aggregate == pytest.approx(mean, rel=1e-12)
    assert scores.per_question == pytest.approx(each.tolist(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_and_empty_corpora_have_the_official_figures(count: int) -> None:
    for seed in range(50):
        answers, references = drawn(f"small {seed}", count)
        references[0].append("dog")  # the official CIDEr ends with an error if no reference has a word
        if seed % 5 == 0:
            answers = [""] * count
        truths, hypotheses = as_official(answers, references)
        words = [text[0].split() for text in hypotheses.values()]
        true_words = [[text.split() for text in group] for group in truths.values()]
        mean, each = Cider().compute_score(truths, hypotheses)
        assert captions.cider_d(words, true_words)[0] == pytest.approx(mean, abs=1e-12)
        assert captions.cider_d(words, true_words)[1] == pytest.approx(each.tolist(), abs=1e-12)
        figures, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
        assert captions.bleu(words, true_words)[0] == pytest.approx(figures, rel=1e-9, abs=1e-15)
