"""Time of an examination whose questions follow the exemplars of their subject: computed once per subject, or always.

    python benchmarks/shared_prefixes.py [--subjects=4] [--questions=40] [--exemplars=700] [--own=100] [--batch=8]

Both sides run the same `OptionScorer` on the same prompts and a model of 14 million parameters with fresh weights;
`share_prefixes` is the only difference. Prompts are about as long as those of MMLU with five exemplars. Sides alternate
in one process after a pass that compiles. Prints one JSON object: seconds, their ratio, the ratio of the tokens that
went through the decoder, the largest difference of a score, and how many predictions differ.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

from qwenvl_jax import config as config_lib
from qwenvl_jax.evaluation.generation.likelihood import OptionScorer, OptionScores
from qwenvl_jax.evaluation.generation.prefixes import Choice
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel

MODEL = config_lib.ModelConfig(
    "examined",
    config_lib.VitConfig(32, 1, 2, 64, 14, 2, 1e-6),
    config_lib.ResamplerConfig(2, 2, 1e-6),
    config_lib.DecoderConfig(4096, 384, 6, 6, 1024, 10000.0, 1e-6, 2048, True, True),
)
COMPUTE = config_lib.ComputeConfig("float32", "float32", "auto", "none", "none", False, 1)


def examination(arguments: argparse.Namespace) -> list[Choice]:
    """The questions of all subjects; their lengths vary by a half."""
    draw = np.random.default_rng(0)
    choices: list[Choice] = []
    for _ in range(arguments.subjects):
        exemplars = draw.integers(0, MODEL.decoder.vocab_size, int(arguments.exemplars * draw.uniform(0.75, 1.25)))
        for _ in range(int(arguments.questions * draw.uniform(0.75, 1.25))):
            own = draw.integers(0, MODEL.decoder.vocab_size, int(arguments.own * draw.uniform(0.5, 1.5)))
            tokens = np.append(exemplars, own).astype(np.int32)
            request = Request(len(choices), tokens, np.full(len(tokens), -1, np.int32))
            choices.append(Choice(request, ((1,), (2,), (3,), (4,))))
    return choices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--exemplars", type=int, default=700)
    parser.add_argument("--own", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    choices = examination(arguments)
    model = LoadedModel(qwen_vl.init_params(MODEL, jax.random.key(0)), MODEL, COMPUTE)
    computed: dict[str, int] = {}

    def side(name: str) -> list[OptionScores]:
        scorer = OptionScorer(model, arguments.batch, share_prefixes=name == "shared")
        scores = list(scorer.score(choices))
        computed[name] = scorer.computed
        return scores

    seconds: dict[str, list[float]] = {"shared": [], "whole": []}
    shared, whole = map(side, seconds)
    for _ in range(arguments.repeat):
        for name, times in seconds.items():
            started = time.perf_counter()
            side(name)
            times.append(time.perf_counter() - started)
    differences = np.array([each.scores for each in shared]) - np.array([each.scores for each in whole])
    facts = {
        "questions": len(choices),
        "batch": arguments.batch,
        **seconds,
        "ratio": min(seconds["shared"]) / min(seconds["whole"]),
        "tokens_ratio": computed["shared"] / computed["whole"],
        "largest_difference": float(np.abs(differences).max()),
        "predictions_that_differ": sum(one.best != other.best for one, other in zip(shared, whole, strict=True)),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
