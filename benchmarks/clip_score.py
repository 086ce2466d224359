"""Pairs per second of CLIP scoring, pictures decoded from JPEG.

    python benchmarks/clip_score.py --vocabulary=bpe_simple_vocab_16e6.txt.gz --peer_python=OTHER/bin/python
    python benchmarks/clip_score.py --vocabulary=bpe_simple_vocab_16e6.txt.gz --model=ViT-L-14 --torch_tower

With `--peer_python`, the interpreter of an environment with py-data-juicer 1.6.1, transformers 4.57.6 and aiohttp, our
rounds alternate with rounds of data-juicer's operator `image_text_similarity_filter`. It has the same towers (ViT-B-32)
with the same random weights, and the same files. Medians are printed, and the largest difference of the scores.

Without it, the model of that name is measured alone with random weights on whatever devices JAX has: with decoding, and
its vision tower alone; with `--torch_tower` in turn with the tower of transformers in PyTorch, compiled, in the same
dtype and batches, which needs a build of torch for the same devices.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from qwenvl_jax.models import clip
from qwenvl_jax.models.clip import CLIP_MODELS, ClipConfig
from qwenvl_jax.scoring.clip import ClipScorer, NotScored
from qwenvl_jax.scoring.clip_tokenizer import ClipTokenizer

WORDS = ("a", "the", "red", "small", "old", "wooden", "boat", "house", "kite", "dog", "snow", "river", "bridge", "near")
PEERS_MODEL = "ViT-B-32-quickgelu"
BATCHES = 4  # per measurement of a tower


def write_pairs(folder: Path, count: int, side: int) -> list[tuple[Path, str]]:
    """JPEGs of `side` x 3/4 `side` pixels with the entropy of photographs, and texts of 4 to 24 words."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        coarse = rng.integers(0, 256, (side * 3 // 32, side // 8, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        path = folder / f"{number}.jpg"
        picture.save(path, quality=85)
        pairs.append((path, " ".join(rng.choice(WORDS, rng.integers(4, 25)))))
    return pairs


def scored(scorer: ClipScorer, pairs: list[tuple[Path, str]]) -> tuple[float, list[float]]:
    """Seconds, and the scores."""
    started = time.perf_counter()
    rows = list(scorer.score((path.read_bytes(), [text]) for path, text in pairs))
    seconds = time.perf_counter() - started
    return seconds, [row[0] for row in rows if not isinstance(row, NotScored)]


class Peer:
    """data-juicer in its own process, idle between rounds."""

    def __init__(self, python: str, folder: Path):
        script = Path(__file__).with_name("clip_score_peer.py")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, str(script), str(folder)], stdin=pipe, stdout=pipe, text=True)
        while "ready" not in (line := self._line()):
            print(line, end="")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended; see its message above")
        return line

    def scored(self) -> tuple[float, list[float]]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        while not (line := self._line()).startswith('{"seconds"'):
            pass  # the operator's own log
        answer = json.loads(line)
        return answer["seconds"], answer["scores"]


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    pairs = write_pairs(folder, arguments.pairs, arguments.side)
    (folder / "pairs.json").write_text(json.dumps([[str(path), text] for path, text in pairs]))
    lines = gzip.decompress(Path(arguments.vocabulary).read_bytes()).decode().split("\n")[: 49_152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    peer = Peer(arguments.peer_python, folder)
    scorer = ClipScorer.load(PEERS_MODEL, folder / "open_clip_pytorch_model.bin", arguments.vocabulary)
    scored(scorer, pairs[:64])  # compiles
    seconds: dict[str, list[float]] = {"ours": [], "data-juicer": []}
    scores: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        for name, run in (("ours", lambda: scored(scorer, pairs)), ("data-juicer", peer.scored)):
            taken, scores[name] = run()
            if number:  # the first round warms up
                seconds[name].append(taken)
                print(f"round {number}: {name:12} {len(pairs) / taken:7.1f} pairs/s")
    difference = np.abs(np.array(scores["ours"]) - np.array(scores["data-juicer"])).max()
    medians = {name: len(pairs) / statistics.median(each) for name, each in seconds.items()}
    print(f"median pairs/s: {', '.join(f'{name} {rate:.1f}' for name, rate in medians.items())}")
    print(f"ratio {medians['ours'] / medians['data-juicer']:.2f}, largest difference of a score {difference:.1e}")


def alone(folder: Path, arguments: argparse.Namespace) -> None:
    config = CLIP_MODELS[arguments.model]
    tokenizer = ClipTokenizer.load(arguments.vocabulary, config.text.context)
    params: Any = jax.tree.map(np.asarray, clip.init_params(config, jax.random.key(0)))
    scorer = ClipScorer(params, config, tokenizer, arguments.batch_size)
    files = write_pairs(folder, min(arguments.pairs, 500), arguments.side)
    pairs = (files * (arguments.pairs // len(files) + 1))[: arguments.pairs]
    scored(scorer, pairs[: 2 * scorer.batch_size])  # compiles
    devices = jax.local_devices()
    print(f"{arguments.model} on {len(devices)} x {devices[0].device_kind}, batches of {scorer.batch_size}")
    rates = []
    for number in range(arguments.rounds):
        taken, _ = scored(scorer, pairs)
        rates.append(len(pairs) / taken)
        print(f"round {number + 1}: {rates[-1]:.1f} pairs/s with decoding")
    print(f"median {statistics.median(rates):.1f} pairs/s with decoding")
    size = scorer.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (scorer.batch_size, size, size, 3), np.uint8)
    towers = {"ours": our_tower(scorer, pixels)}
    if arguments.torch_tower:
        towers["PyTorch"] = torch_tower(config, pixels)
    for name, rate in tower_rates(towers, scorer.batch_size).items():
        print(f"vision tower alone, {name}: {rate:.1f} images/s of {size} px")


def our_tower(scorer: ClipScorer, pixels: np.ndarray) -> Callable[[], None]:
    """Encodes pixels that are on the devices already, four times."""
    on_devices = scorer.put(pixels)
    return lambda: jax.block_until_ready([scorer.encode_images(on_devices) for _ in range(BATCHES)]) and None


def torch_tower(config: ClipConfig, pixels: np.ndarray) -> Callable[[], None]:
    """The same with `CLIPVisionModelWithProjection` and `torch.compile`: bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from qwenvl_jax.conversion.torch_model.visual import normalise

    vision = config.vision
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.mlp_dim,
            projection_dim=config.embed_dim,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=config.image_size,
            patch_size=vision.patch_size,
            hidden_act="quick_gelu" if config.quick_gelu else "gelu",
            attn_implementation="sdpa",
        )
    )
    model = model.eval().to(device=device, dtype=dtype)
    images = torch.from_numpy(pixels).to(device)

    @torch.compile
    def encode(images_IHWC: torch.Tensor) -> torch.Tensor:
        return model(normalise(images_IHWC).to(dtype)).image_embeds

    def run() -> None:
        with torch.inference_mode():
            for _ in range(BATCHES):
                encode(images)
            if device == "cuda":
                torch.cuda.synchronize()

    return run


def tower_rates(towers: dict[str, Callable[[], None]], batch_size: int) -> dict[str, float]:
    """Median images per second of each, in turn, after two rounds that warm up."""
    rates: dict[str, list[float]] = {name: [] for name in towers}
    for _ in range(8):
        for name, run in towers.items():
            started = time.perf_counter()
            run()
            rates[name].append(BATCHES * batch_size / (time.perf_counter() - started))
    return {name: statistics.median(each[2:]) for name, each in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--peer_python")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="longer side of the pictures, in pixels")
    parser.add_argument("--batch_size", type=int, default=0)
    parser.add_argument("--torch_tower", action="store_true", help="without --peer_python: PyTorch's tower in turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        (compare if arguments.peer_python else alone)(Path(name), arguments)


if __name__ == "__main__":
    main()
