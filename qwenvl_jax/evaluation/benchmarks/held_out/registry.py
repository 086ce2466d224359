"""The training tasks that can be asked on held-out records."""

from __future__ import annotations

from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.held_out import caption, dialogue, ocr, ref_grounding, vqa

HELD_OUT: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (ref_grounding, ocr, vqa, caption, dialogue)
}
