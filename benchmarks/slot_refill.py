"""Wall time of a benchmark whose answers have 1 to 200 tokens: slots that are refilled, against fixed batches.

    python benchmarks/slot_refill.py [--questions=256] [--slots=32] [--lengths=skewed|uniform]

Both sides run the same `Generator` and the same compiled programs. Fixed batches give it as many questions as it has
slots, and the next ones after the longest answer. `skewed` draws lengths whose logarithm is uniform, as most answers of
a benchmark are short. The model is made so that the length of every answer is known: it counts from the last token of
the prompt to the stop id. Its weights cost what any others cost. Prints one JSON object; sides alternate in one
process.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

from qwenvl_jax import config as config_lib
from qwenvl_jax.evaluation.generation.generate import Generator
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.evaluation.generation.sampling import Limits
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel

LONGEST = 200
STOP = LONGEST  # the ids below it are counted up
PROMPT = 24
MODEL = config_lib.ModelConfig(
    "counting",
    config_lib.VitConfig(32, 1, 2, 64, 14, 2, 1e-6),
    config_lib.ResamplerConfig(2, 2, 1e-6),
    config_lib.DecoderConfig(1024, 384, 6, 6, 1024, 10000.0, 1e-6, 2048, True, True),
)
COMPUTE = config_lib.ComputeConfig("float32", "float32", "auto", "none", "none", False, 1)


def counting_model() -> LoadedModel:
    """A model whose next token is the last one plus 1: its blocks add nothing, its output matrix finds the next id."""
    params = jax.tree.map(np.array, jax.device_get(qwen_vl.init_params(MODEL, jax.random.key(0))))
    decoder = params["decoder"]
    decoder["blocks"]["attn"]["out"]["kernel"][:] = 0
    decoder["blocks"]["mlp"]["down"]["kernel"][:] = 0
    decoder["embedding"] = np.random.default_rng(0).normal(size=decoder["embedding"].shape).astype(np.float32)
    decoder["lm_head"] = np.roll(decoder["embedding"], 1, axis=0).T.copy()
    return LoadedModel(jax.device_put(params), MODEL, COMPUTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--lengths", choices=("skewed", "uniform"), default="skewed")
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0).uniform(size=arguments.questions)
    lengths = (LONGEST + 1) ** draw if arguments.lengths == "skewed" else 1 + LONGEST * draw
    lengths = np.clip(lengths.astype(int), 1, LONGEST)
    requests = []
    for number, length in enumerate(lengths):
        tokens = np.full(PROMPT, STOP + 1, np.int32)
        tokens[-1] = STOP - length - 1 if length < LONGEST else 1023  # 1023 is followed by 0
        requests.append(Request(number, tokens, np.full(PROMPT, -1, np.int32)))
    generator = Generator(counting_model(), arguments.slots)
    limits = Limits(LONGEST + 1, 0, (STOP,))

    def refilled() -> dict[object, list[int]]:
        return {answer.key: answer.ids for answer in generator.generate(requests, limits, longest=PROMPT)}

    def fixed() -> dict[object, list[int]]:
        answers: dict[object, list[int]] = {}
        for first in range(0, len(requests), arguments.slots):
            batch = requests[first : first + arguments.slots]
            answers |= {answer.key: answer.ids for answer in generator.generate(batch, limits, longest=PROMPT)}
        return answers

    sides = {"refilled": refilled, "fixed": fixed}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        answers = side()
        assert [len(answers[number]) for number in range(len(lengths))] == lengths.tolist(), name
    for _ in range(arguments.repeat):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    ratio = min(seconds["refilled"]) / min(seconds["fixed"])
    print(json.dumps({"lengths": arguments.lengths, "tokens": int(lengths.sum()), **seconds, "ratio": ratio}))


if __name__ == "__main__":
    main()
