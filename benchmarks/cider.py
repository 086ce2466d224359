"""Time of CIDEr of 5,000 images with five references each: ours against pycocoevalcap, which needs java.

    python benchmarks/cider.py

Captions are drawn from 5,000 invented words whose frequencies follow Zipf's law, with marks, numbers and contractions
as in COCO. Both get the same texts and tokenise them as the official evaluation does. Each round starts with empty
caches. The scores are compared before the times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time

import numpy as np
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from qwenvl_jax.evaluation.metrics import cider
from qwenvl_jax.evaluation.metrics.ptb import tokenizer

IMAGES = 5000
REFERENCES = 5
ROUNDS = 3


def captions(rng: np.random.Generator, count: int) -> list[str]:
    """Sentences of 8 to 14 words."""
    words = ["".join(rng.choice(list("abdeilmnorstu"), rng.integers(2, 9))) for _ in range(5000)]
    words[:12] = ["a", "the", "on", "in", "of", "two", "man's", "is", "2", "isn't", "well-known", "and"]
    chances = 1 / np.arange(2, len(words) + 2)
    chances /= chances.sum()
    sentences = []
    for _ in range(count):
        picked = rng.choice(words, rng.integers(8, 15), p=chances).tolist()
        picked[-1] = "dog"  # of "a." at the end, the next caption would decide whether the period stays
        if rng.random() < 0.2:
            picked[len(picked) // 2] += ","
        sentences.append((" ".join(picked) + rng.choice([".", ".", "", " ."])).capitalize())
    return sentences


def ours(predictions: list[str], references: list[list[str]]) -> tuple[float, dict[str, float]]:
    tokenizer.clear_cache()
    cider.ptb_tokens.cache_clear()
    start = time.perf_counter()
    for text in (*predictions, *(text for group in references for text in group)):
        cider.ptb_tokens(text)
    tokenised = time.perf_counter()
    mean, _ = cider.cider(predictions, references)
    return mean, {"tokens": tokenised - start, "all": time.perf_counter() - start}


def theirs(predictions: list[str], references: list[list[str]]) -> tuple[float, dict[str, float]]:
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        truths = PTBTokenizer().tokenize(
            {k: [{"caption": text} for text in group] for k, group in enumerate(references)}
        )
        hypotheses = PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(predictions)})
    tokenised = time.perf_counter()
    mean, _ = Cider().compute_score(truths, hypotheses)
    return float(mean), {"tokens": tokenised - start, "all": time.perf_counter() - start}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(0)
    sentences = captions(rng, IMAGES * REFERENCES)
    references = [sentences[k : k + REFERENCES] for k in range(0, len(sentences), REFERENCES)]
    # Half of the answers are a reference with a word exchanged.
    predictions = captions(rng, IMAGES)
    for k in range(0, IMAGES, 2):
        words = references[k][0].split()
        words[rng.integers(len(words) - 2)] = "a"
        predictions[k] = " ".join(words)
    rounds = []
    for _ in range(ROUNDS):  # alternating, so that a busy machine is busy for both
        mean, seconds = ours(predictions, references)
        official, official_seconds = theirs(predictions, references)
        assert abs(mean - official) < 1e-9, (mean, official)
        rounds.append((seconds, official_seconds))
    print(f"CIDEr {mean:.6f} of {IMAGES} images, the same from both")
    for part in ("tokens", "all"):
        first = statistics.median(seconds[part] for seconds, _ in rounds)
        second = statistics.median(seconds[part] for _, seconds in rounds)
        print(f"{part}: ours {first:.2f} s, pycocoevalcap {second:.2f} s, {second / first:.1f} times")


if __name__ == "__main__":
    main()
