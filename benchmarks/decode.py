"""Tokens per second of generation: this code's `Generator` against `transformers` `generate`, alternated in one run.

    python benchmarks/decode.py [--batch=1,8,32] [--repeat=3]                          # on a CPU, float32
    python benchmarks/decode.py --size=full --batch=32 --prompt=384 --new=128          # on a GPU, bfloat16

Needs requirements-convert.txt. The peer is transformers' Qwen2 with the sizes of our decoder, its biases on queries,
keys and values included, and PyTorch's scaled dot products (`sdpa`); `torch_static` is its compiled step with a static
cache. Both sides continue the same random prompts by greedy decoding, and no answer ends early. Prompts are text: the
pictures of a benchmark are encoded once, before. On a CPU both sides have the same weights, and their answers are
compared; at full size each side draws its own weights, on the device.

Every measurement is a new process, and sides alternate. The first call of a process compiles and is not counted. Prints
a table, and as the last line one JSON object. `tokens_per_second` is that of whole calls, prompts included.

This code also times its decoding loop alone (`slots.advance`, its longer run less its shorter): seconds per step, and
the share of the bound that the device's memory sets, when every step reads the weights once and the live columns of the
cache once. The bound is stated twice: by the bandwidth of the data sheet, and by that of a copy in the same process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import steps

from qwenvl_jax import config as config_lib
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

SIDES = ("jax", "torch", "torch_static")
_VISION = (config_lib.VitConfig(32, 1, 2, 64, 14, 2, 1e-6), config_lib.ResamplerConfig(2, 2, 1e-6))
_QWEN = (10000.0, 1e-6, 2048, True, True)
MODELS = {
    "tiny": config_lib.DecoderConfig(512, 64, 2, 4, 176, *_QWEN),
    "small": config_lib.DecoderConfig(8192, 512, 8, 8, 1376, *_QWEN),
    "full": config_lib.DecoderConfig(151936, 4096, 32, 32, 11008, *_QWEN),
}

# Data sheets, bytes per second: NVIDIA H100 SXM5 80GB 3.35 TB/s, NVIDIA H200 SXM 4.8 TB/s.
BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H200": 4.8e12}

ENVIRONMENT = {"XLA_CLIENT_MEM_FRACTION": "0.9", "TOKENIZERS_PARALLELISM": "false"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What both sides do."""

    size: str
    batch: int
    prompt: int
    new: int

    @property
    def dtype(self) -> str:
        """Of weights, cache and products."""
        return "bfloat16" if self.size == "full" else "float32"

    @property
    def decoder(self) -> config_lib.DecoderConfig:
        """The sizes."""
        return MODELS[self.size]

    def prompts(self) -> np.ndarray:
        """[batch, prompt] int32, random ids."""
        shape = (self.batch, self.prompt)
        return np.random.default_rng(0).integers(3, self.decoder.vocab_size, shape).astype(np.int32)


def fresh_params(task: Task) -> Any:
    """Decoder parameters, drawn on the device leaf by leaf, with noise on biases and norms."""
    import jax
    import jax.numpy as jnp

    from qwenvl_jax.evaluation.placement import CAST
    from qwenvl_jax.models import qwen_vl

    shapes = qwen_vl.abstract_params(config_lib.ModelConfig(task.size, *_VISION, task.decoder))["decoder"]

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        dtype = jnp.dtype(task.dtype if name in CAST else "float32")
        key = jax.random.fold_in(jax.random.key(1), sum(map(ord, jax.tree_util.keystr(path))))
        scale = 0.02 if task.size == "full" else leaf.shape[-1] ** -0.5
        noise = jax.jit(lambda: scale * jax.random.normal(key, leaf.shape, dtype))()
        return noise + 1 if name == "scale" else noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def jax_side(task: Task) -> tuple[Callable[[], list[list[int]]], Callable[[], dict[str, Any]]]:
    """This code: a call that generates, and one that times the decoding loop alone."""
    import jax

    from qwenvl_jax.evaluation.generation.generate import Generator
    from qwenvl_jax.evaluation.generation.requests import Request
    from qwenvl_jax.evaluation.generation.sampling import Limits
    from qwenvl_jax.models import qwen_vl
    from qwenvl_jax.models.loaded import LoadedModel

    compute = config_lib.ComputeConfig(task.dtype, task.dtype, "auto", "none", "none", False, 1)
    params = {"decoder": fresh_params(task)}
    if jax.default_backend() != "tpu":  # as `evaluation.placement` does
        params = qwen_vl.layers_apart(params)
    model = LoadedModel(params, config_lib.ModelConfig(task.size, *_VISION, task.decoder), compute)
    jax.block_until_ready(model.params)
    generator = Generator(model, task.batch)
    none = np.full(task.prompt, -1, np.int32)
    requests = [Request(row, ids, none) for row, ids in enumerate(task.prompts())]

    def generate() -> list[list[int]]:
        answers = {answer.key: answer.ids for answer in generator.generate(requests, Limits(task.new))}
        return [answers[row] for row in range(task.batch)]

    return generate, lambda: _loop_figures(task, model)


def _loop_figures(task: Task, model: Any) -> dict[str, Any]:
    """JSON values of the decoding loop alone."""
    import jax

    from qwenvl_jax.evaluation.generation import slots
    from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling

    columns = -(-(task.prompt + task.new) // 32) * 32
    state = slots.empty_slots(model, task.batch, columns, task.new)
    full = np.full(task.batch, task.prompt, np.int32)
    how = {"limits": Limits(task.new), "sampling": Sampling()}

    def seconds(count: int) -> float:
        nonlocal state
        state = state._replace(cached_B=full, count_B=full * 0, active_B=full > 0)
        state = jax.block_until_ready(jax.device_put(state))
        started = time.perf_counter()
        state = jax.block_until_ready(slots.advance(model, state, np.int32(count), np.int32(0), **how))
        return time.perf_counter() - started

    short = max(1, task.new // 8)
    seconds(short)
    times = [(seconds(short), seconds(task.new)) for _ in range(3)]
    step = statistics.median((long - brief) / (task.new - short) for brief, long in times)
    decoder = task.decoder
    item = 2 if task.dtype == "bfloat16" else 4
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    read -= decoder.vocab_size * decoder.width * item  # of the embedding only a few rows are read
    context = task.prompt + (short + task.new) / 2
    live = 2.0 * decoder.layers * decoder.width * item * task.batch * context
    device = jax.devices()[0]
    copied = _copy_bandwidth(device.platform)
    stats = device.memory_stats() or {}
    figures = {"step_seconds": step, "weight_bytes": read, "live_cache_bytes": live, "columns": columns}
    figures |= {"copy_bandwidth": copied, "share_of_copy": (read + live) / step / copied}
    if device.device_kind in BANDWIDTH:
        figures["share_of_hbm"] = (read + live) / step / BANDWIDTH[device.device_kind]
    return figures | {"peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30}


def _copy_bandwidth(platform: str) -> float:
    """Bytes per second that a copy reads and writes."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(2**30 if platform == "gpu" else 2**26, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(array))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(copy(array))
        seconds.append(time.perf_counter() - started)
    return 2 * array.nbytes / min(seconds)


def torch_side(task: Task, static: bool) -> Callable[[], list[list[int]]]:
    """`transformers`: a call that generates."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    decoder = task.decoder
    config = Qwen2Config(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.width,
        intermediate_size=decoder.mlp_dim,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.heads,
        max_position_embeddings=8192,
        rms_norm_eps=decoder.rms_norm_eps,
        rope_theta=decoder.rope_base,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(getattr(torch, task.dtype))
    with torch.device(device):
        model = Qwen2ForCausalLM(config).eval()
    if task.size != "full":
        _copy_weights(fresh_params(task), model)
    torch.set_grad_enabled(False)
    ids = torch.from_numpy(task.prompts()).long().to(device)
    how = {"cache_implementation": "static"} if static else {}

    def generate() -> list[list[int]]:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=task.new,
            max_new_tokens=task.new,
            **how,
        )
        return out[:, task.prompt :].tolist()

    return generate


def _copy_weights(params: Any, model: Any) -> None:
    """Our parameters into transformers' modules."""
    import torch

    def put(target: Any, values: Any) -> None:
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.array(values)).reshape(target.shape))

    put(model.model.embed_tokens.weight, params["embedding"])
    put(model.lm_head.weight, np.asarray(params["lm_head"]).T)
    put(model.model.norm.weight, params["ln_f"]["scale"])
    blocks = params["blocks"]
    width = params["embedding"].shape[1]
    for index, layer in enumerate(model.model.layers):
        put(layer.input_layernorm.weight, blocks["ln_1"]["scale"][index])
        put(layer.post_attention_layernorm.weight, blocks["ln_2"]["scale"][index])
        qkv = blocks["attn"]["qkv"]
        for part, name in enumerate("qkv"):
            linear = getattr(layer.self_attn, f"{name}_proj")
            put(linear.weight, np.asarray(qkv["kernel"][index][:, part]).reshape(width, -1).T)
            put(linear.bias, qkv["bias"][index][part])
        put(layer.self_attn.o_proj.weight, np.asarray(blocks["attn"]["out"]["kernel"][index]).reshape(-1, width).T)
        for name in ("up", "gate", "down"):
            put(getattr(layer.mlp, f"{name}_proj").weight, np.asarray(blocks["mlp"][name]["kernel"][index]).T)


def measure(task: Task, side: str, calls: int) -> dict[str, Any]:
    """JSON values of one side: the seconds of each call after the first, and its answers."""
    loop: Callable[[], dict[str, Any]] = dict
    if side == "jax":
        generate, loop = jax_side(task)
    else:
        generate = torch_side(task, static=side == "torch_static")
    answers = generate()
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        again = generate()
        seconds.append(time.perf_counter() - started)
        if task.size != "full" and again != answers:
            raise UserError(f"the side {side} answers differently the second time")
    return {"seconds": seconds, "trained": 0, "answers": answers, "loop": loop()}


def compared(task: Task, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """JSON values of one batch size: by side tokens per second of the median call; ratios to the faster peer."""
    sides = {}
    for side, measured in runs.items():
        best, median = steps.best_and_median(measured)
        tokens = task.batch * task.new
        sides[side] = {"seconds_best": best, "seconds_median": median, "tokens_per_second": tokens / median}
        sides[side] |= measured[-1]["loop"]
    row: dict[str, Any] = {**dataclasses.asdict(task), "sides": sides}
    peers = [side for side in sides if side != "jax"]
    if "jax" in sides and peers:
        fastest = max(sides[side]["tokens_per_second"] for side in peers)
        row["ratio_to_best_peer"] = sides["jax"]["tokens_per_second"] / fastest
        pairs = list(zip(runs["jax"][0]["answers"], runs[peers[0]][0]["answers"], strict=True))
        row["equal_answers"] = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(MODELS), default="small")
    parser.add_argument("--batch", default="1,8,32", help="rows, one or several numbers")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--sides", default="jax,torch")
    parser.add_argument("--repeat", type=int, default=2, help="processes per side and batch size")
    parser.add_argument("--calls", type=int, default=3, help="counted calls per process")
    parser.add_argument("--side", choices=SIDES, help="measures one side in this process")
    arguments = parser.parse_args()
    rows = []
    with exit_on_user_error():
        for batch in map(int, arguments.batch.split(",")):
            task = Task(arguments.size, batch, arguments.prompt, arguments.new)
            if arguments.side:
                print(json.dumps(measure(task, arguments.side, arguments.calls)))
                return
            given = [f"--{name}={getattr(arguments, name)}" for name in ("size", "prompt", "new", "calls")]
            command = [sys.executable, __file__, *given, f"--batch={batch}"]
            runs = steps.alternate(
                arguments.sides.split(","),
                lambda side, command=command: [*command, f"--side={side}"],
                arguments.repeat,
                {**ENVIRONMENT, **os.environ},
            )
            rows.append(compared(task, runs))
            for side, figures in rows[-1]["sides"].items():
                extra = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "second" not in name)
                print(
                    f"batch {batch:3} {side:14} {figures['tokens_per_second']:9.1f} tokens/s  {extra}", file=sys.stderr
                )
            print(f"batch {batch:3} ratio {rows[-1].get('ratio_to_best_peer', 0):.2f}", file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
