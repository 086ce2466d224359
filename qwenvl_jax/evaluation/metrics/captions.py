"""CIDEr-D, BLEU and ROUGE-L of captions that are split into tokens, equal to pycocoevalcap.

Sources: CIDEr, Vedantam et al. 2015 (arXiv 1411.5726); BLEU, Papineni et al. 2002; ROUGE, Lin 2004; and the settings of
the COCO caption evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qwenvl_jax.evaluation.metrics import ngrams

Tokens = Sequence[str]

_LONGEST = 4  # n-grams of up to four words
_CIDER_SIGMA = 6.0
_CIDER_SCALE = 10.0
# What pycocoevalcap adds to the numerators and denominators of BLEU.
_BLEU_TINY = 1e-15
_BLEU_SMALL = 1e-9
_ROUGE_BETA = 1.2


def _image_of_references(references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    return np.repeat(np.arange(len(references)), [len(group) for group in references])


def cider_d(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """CIDEr-D: tf-idf weighted n-grams (n = 1..4), clipped, with a Gaussian penalty on the length (sigma 6), times ten.

    Document frequencies are those of the references, one document per image; so figures of different sets cannot be
    compared, and a single image scores zero.

    Args:
      predictions: the tokens of one caption per image.
      references: the tokens of one or more captions per image.

    Returns:
      The mean over the images, and the value of each image.
    """
    images = len(predictions)
    image_of_reference = _image_of_references(references)
    captions = [*predictions, *(caption for group in references for caption in group)]
    # pycocoevalcap measures the length in bigrams.
    bigrams = np.array([max(len(caption) - 1, 0) for caption in captions], float)
    difference = bigrams[image_of_reference] - bigrams[images:]
    penalty = np.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))
    image_of_caption = np.concatenate([np.arange(images), image_of_reference])
    similarity = np.zeros(len(image_of_reference))
    for counts in ngrams.counts(captions, _LONGEST):
        key = image_of_caption[counts.caption_E] * max(counts.grams, 1) + counts.gram_E
        is_reference = counts.caption_E >= images
        documents = np.unique(key[is_reference]) % max(counts.grams, 1)
        frequency = np.bincount(documents, minlength=counts.grams)
        idf = math.log(images) - np.log(np.maximum(frequency, 1))
        weight = counts.count_E * idf[counts.gram_E]
        norm = np.sqrt(np.bincount(counts.caption_E, weight**2, minlength=len(captions)))
        # Predictions come first and have their image's number, so their keys are sorted.
        index, present = ngrams.lookup(key[~is_reference], key[is_reference])
        reference = counts.caption_E[is_reference][present] - images
        true = weight[is_reference][present]
        product = np.minimum(weight[~is_reference][index[present]], true) * true
        value = np.bincount(reference, product, minlength=len(image_of_reference))
        scale = norm[image_of_reference] * norm[images:]
        similarity += np.where(scale > 0, value / np.where(scale > 0, scale, 1.0), value) * penalty / _LONGEST
    each = np.bincount(image_of_reference, similarity, minlength=images) * _CIDER_SCALE
    each /= np.array([len(group) for group in references])
    return float(each.mean()), [float(value) for value in each]


def bleu(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to BLEU-4 of the corpus, and of each image alone.

    The length of a caption is compared with the reference whose length is nearest (of two, the shorter). The figure of
    the corpus comes from sums over it and is not the mean of the images.

    Returns:
      Four figures, and four lists with one value per image.
    """
    images = len(predictions)
    image_of_reference = _image_of_references(references)
    captions = [*predictions, *(caption for group in references for caption in group)]
    length = np.array([len(caption) for caption in predictions], float)
    nearest = np.array(
        [
            min((abs(len(reference) - len(prediction)), len(reference)) for reference in group)[1]
            for prediction, group in zip(predictions, references, strict=True)
        ],
        float,
    )
    log_precision = np.zeros(images)
    log_corpus = 0.0
    ratio = (length + _BLEU_TINY) / (nearest + _BLEU_SMALL)
    penalty = np.where(ratio < 1, 1 - 1 / ratio, 0.0)
    corpus_ratio = (length.sum() + _BLEU_TINY) / (nearest.sum() + _BLEU_SMALL)
    corpus_penalty = 1 - 1 / corpus_ratio if corpus_ratio < 1 else 0.0
    figures = []
    each = []
    for n, counts in enumerate(ngrams.counts(captions, _LONGEST), start=1):
        is_reference = counts.caption_E >= images
        grams = max(counts.grams, 1)
        image = image_of_reference[counts.caption_E[is_reference] - images]
        keys, inverse = np.unique(image * grams + counts.gram_E[is_reference], return_inverse=True)
        largest = np.zeros(len(keys), np.int64)
        np.maximum.at(largest, inverse, counts.count_E[is_reference])
        predicted = counts.caption_E[~is_reference]
        index, present = ngrams.lookup(keys, predicted * grams + counts.gram_E[~is_reference])
        clipped = np.minimum(counts.count_E[~is_reference][present], largest[index[present]])
        right = np.bincount(predicted[present], clipped, minlength=images)
        guessed = np.maximum(length - n + 1, 0)
        log_precision += np.log((right + _BLEU_TINY) / (guessed + _BLEU_SMALL))
        log_corpus += math.log((right.sum() + _BLEU_TINY) / (guessed.sum() + _BLEU_SMALL))
        with np.errstate(under="ignore"):
            each.append([float(value) for value in np.exp(log_precision / n + penalty)])
        figures.append(math.exp(log_corpus / n + corpus_penalty))
    return figures, each


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Its length, with the rows of the dynamic programme as the bits of one integer (Hyyro 2004)."""
    positions: dict[str, int] = {}
    for number, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << number
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(first) - row.bit_count()


def rouge_l(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L with beta 1.2: the best precision and the best recall over the references, joined.

    As in pycocoevalcap, the two may come from different references, and a caption without any token counts as one with
    a single empty token, which only another empty caption has.
    """
    predicted = prediction or ("",)
    precision = 0.0
    recall = 0.0
    for reference in references:
        true = reference or ("",)
        common = _longest_common_subsequence(predicted, true)
        precision = max(precision, common / len(predicted))
        recall = max(recall, common / len(true))
    if not precision or not recall:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)
