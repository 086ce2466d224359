"""How many boxes a caption keeps if its spans are chosen greedily, against the maximum (`clean.grounding`).

    python benchmarks/grounding_spans.py

Captions are random: phrases of one to eight words at random positions of a caption of twenty words, each with one or
two boxes, with as many spans as GRIT has (about 2 to 8) and with more. The maximum is that of dynamic programming,
which the tests compare with all subsets.
"""

from __future__ import annotations

import random
import time

from data_pipelines.clean.grounding import Span, greedy, most_boxes

CAPTIONS = 20_000
WORDS = 20


def caption(rng: random.Random, spans: int) -> list[Span]:
    """Different spans of one caption, in words."""
    drawn: dict[tuple[int, int], Span] = {}
    while len(drawn) < spans:
        start = rng.randrange(WORDS)
        end = min(start + rng.randint(1, 8), WORDS)
        drawn[start, end] = Span(start, end, rng.choice((1, 1, 1, 2)), rng.random())
    return list(drawn.values())


def main() -> None:
    print(f"{CAPTIONS:,} captions per row")
    print("| spans | captions that lose boxes | boxes that are lost | time of greedy / time of the maximum |")
    print("|---|---|---|---|")
    for spans in (2, 4, 8, 16):
        rng = random.Random(spans)
        captions = [caption(rng, spans) for _ in range(CAPTIONS)]
        kept = {}
        seconds = {}
        for choose in (greedy, most_boxes):
            start = time.perf_counter()
            chosen = [choose(each) for each in captions]
            seconds[choose] = time.perf_counter() - start
            kept[choose] = [
                sum(each[index].boxes for index in indices) for each, indices in zip(captions, chosen, strict=True)
            ]
        losing = sum(fewer < most for fewer, most in zip(kept[greedy], kept[most_boxes], strict=True))
        lost = 1 - sum(kept[greedy]) / sum(kept[most_boxes])
        ratio = seconds[greedy] / seconds[most_boxes]
        print(f"| {spans} | {losing / CAPTIONS:.1%} | {lost:.1%} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
