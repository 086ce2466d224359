"""32 clients that ask about pictures at once: this code's engine against `transformers` behind the same queue.

    python benchmarks/serving.py [--size=quickstart|small] [--clients=32] [--questions=2] [--slots=16] [--repeat=2]
        [--torch_threads=1]

Needs requirements-convert.txt. One release with random weights is exported; every side loads it in a process of its
own, and sides alternate. All sides get the same questions, decode greedily and stream every answer:

    engine   `qwenvl_jax.serving`: requests join and leave the slots at any time
    single   `generate` for one request after the other, as the published openai_api.py does
    batches  `generate` for as many requests as wait, at most as many as the engine has slots, padded on the left; a
             request that comes meanwhile waits for the next batch

Every client asks its next question when it has the answer to the last one. A warm-up with other questions, of the same
lengths, is not counted. Prints a line per side and, as the last line, one JSON object: new tokens per second of the
whole, seconds to the first token (of the engine: to the first piece of text), seconds to the end, and how many answers
equal those of `single`. While other programs use the cores, the threads of PyTorch wait for one another at every
operation; --torch_threads=1 is then the better choice for that side.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

SIDES = ("engine", "single", "batches")
LENGTHS = (8, 64)  # new tokens of the shortest and the longest answer
CONTEXT = 384

OnToken = Callable[[int | None], Any]  # gets every token, and None at the end
Prepared = tuple[Any, np.ndarray, int, OnToken]  # tokens, pixels, the largest number of new tokens


@dataclasses.dataclass(frozen=True)
class Question:
    """One request: a text about some pictures, and the largest number of new tokens."""

    turns: list[dict[str, Any]]
    pictures: list[bytes]
    most: int


@dataclasses.dataclass
class Timed:
    """What a client saw of one answer."""

    ids: list[int]
    first_s: float
    total_s: float


def question(number: int) -> Question:
    """About one or two of 16 pictures; lengths of texts and answers vary with the number."""
    draw = np.random.default_rng(number)
    pictures = [_picture(int(each)) for each in draw.integers(0, 16, 1 + number % 2)]
    parts: list[dict[str, Any]] = [{"image": index} for index in range(len(pictures))]
    parts.append({"text": f"What is {'so ' * int(draw.integers(0, 8))}odd about it, {number}?"})
    return Question([{"role": "user", "parts": parts}], pictures, int(draw.integers(*LENGTHS, endpoint=True)))


def _picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def export(folder: Path, size: str) -> None:
    """Writes a release with random weights and a vocabulary of bytes."""
    import jax

    from configs.quickstart import stage3_sft
    from qwenvl_jax.config import load_config
    from qwenvl_jax.conversion import to_torch
    from qwenvl_jax.models import qwen_vl

    vocabulary = folder / "bytes.tiktoken"
    vocabulary.write_text("".join(f"{base64.b64encode(bytes([k])).decode()} {k}\n" for k in range(256)))
    values = stage3_sft.get_config()
    values.tokenizer = dict(kind="qwen", path=str(vocabulary))
    if size == "small":
        values.model.vit.update(width=192, layers=6, heads=6, mlp_dim=768)
        values.model.decoder.update(width=512, layers=8, heads=8, mlp_dim=1376)
    config = load_config(values)
    rng = np.random.default_rng(0)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), fresh)
    to_torch.release(params, config, folder / "release", dtype="float32")


class EngineServer:
    """This code."""

    def __init__(self, folder: Path, slots: int):
        from qwenvl_jax.runtime import storage
        from qwenvl_jax.serving.open_model import open_model
        from qwenvl_jax.serving.options import EngineSettings

        imported = storage.path(str(folder / "imported"))
        opened = open_model(str(folder / "release"), None, imported)
        self._engine = opened.engine(EngineSettings(slots=slots, context=CONTEXT))
        self._engine.start()

    def close(self) -> None:
        """Ends the engine's thread."""
        self._engine.close()

    def submit(self, asked: Question, on_token: OnToken) -> None:
        """Asks; `on_token` is called on the engine's thread."""
        from qwenvl_jax.serving.answer import Event, Finished
        from qwenvl_jax.serving.options import AnswerOptions

        def tell(event: Event) -> None:
            if isinstance(event, Finished):
                for token in event.ids:
                    on_token(token)
                on_token(None)
            else:
                on_token(-1)  # a piece of text: its tokens come with the end

        self._engine.submit(asked.turns, asked.pictures, AnswerOptions(max_new_tokens=asked.most), tell)


class TorchServer:
    """`transformers`: one thread that takes from a queue what waits, at most `most` requests at once."""

    def __init__(self, folder: Path, most: int, threads: int):
        import torch
        from transformers import AutoModelForCausalLM

        from qwenvl_jax.config import TokenizerConfig
        from qwenvl_jax.data.tokenizer import load_tokenizer

        if threads:
            torch.set_num_threads(threads)
        release = str(folder / "release")
        self._model: Any = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True).eval()
        self._tokenizer = load_tokenizer(TokenizerConfig("qwen", str(folder / "bytes.tiktoken")))
        self._most = most
        self._waiting: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread once nothing waits before this."""
        self._waiting.put(None)
        self._thread.join()

    def submit(self, asked: Question, on_token: OnToken) -> None:
        """Asks; text and pictures are prepared on the caller's thread, as the engine does."""
        from qwenvl_jax.data.examples import decode_images
        from qwenvl_jax.serving.dialogue import build_prompt

        visual = self._model.config.visual
        prompt = build_prompt(asked.turns, self._tokenizer, self._model.transformer.visual.queries, CONTEXT)
        shown = [asked.pictures[index] for index in prompt.tokens.image_indices]
        pixels_IHWC = decode_images(shown, visual["image_size"])
        self._waiting.put((prompt.tokens, pixels_IHWC, asked.most, on_token))

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._most and not self._waiting.empty():
                if (another := self._waiting.get()) is None:
                    return
                batch.append(another)
            self._answer(batch)

    def _answer(self, batch: Sequence[Prepared]) -> None:
        import torch

        from qwenvl_jax.conversion.torch_model.visual import normalise

        longest = max(len(tokens.tokens_L) for tokens, *_ in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (tokens, *_) in enumerate(batch):
            ids[row, longest - len(tokens.tokens_L) :] = torch.from_numpy(tokens.tokens_L.astype(np.int64))
            mask[row, longest - len(tokens.tokens_L) :] = 1
        pixels = torch.cat([normalise(torch.from_numpy(pixels_IHWC)) for _, pixels_IHWC, *_ in batch])
        special = self._tokenizer.special
        stops = [special.im_end, special.im_start, special.eot]
        streamer = _Rows([(most, on_token) for *_, most, on_token in batch], stops)
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=mask, pixel_values=pixels, do_sample=False, streamer=streamer,
                max_new_tokens=max(most for *_, most, _ in batch), eos_token_id=stops, pad_token_id=special.eot,
            )  # fmt: skip


class _Rows:
    """Takes the tokens of a batch, a step at a time, and tells each row's listener until its own end."""

    def __init__(self, rows: Sequence[tuple[int, OnToken]], stops: Sequence[int]):
        self._left: list[int] = [most for most, _ in rows]
        self._on_token = [on_token for _, on_token in rows]
        self._stops = set(stops)
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for row, token in enumerate(value.reshape(-1).tolist()):
            if self._left[row]:
                self._left[row] -= 1
                if token not in self._stops:
                    self._on_token[row](token)
                else:
                    self._left[row] = 0
                if not self._left[row]:
                    self._on_token[row](None)

    def end(self) -> None:
        """All rows have ended at their own last token."""


def ask(server: Any, asked: Question) -> Timed:
    """One answer, listened to from the first token to the last."""
    heard: queue.SimpleQueue[tuple[float, int | None]] = queue.SimpleQueue()
    began = time.perf_counter()
    server.submit(asked, lambda token: heard.put((time.perf_counter(), token)))
    first = 0.0
    ids: list[int] = []
    while True:
        when, token = heard.get()
        first = first or when
        if token is None:
            return Timed(ids, first - began, when - began)
        if token >= 0:
            ids.append(token)


def clients(server: Any, count: int, questions: int, offset: int) -> tuple[float, dict[int, Timed]]:
    """Seconds of the whole, and the answers by number."""
    answers: dict[int, Timed] = {}
    asked = {number: question(offset + number) for number in range(count * questions)}
    together = threading.Barrier(count + 1)

    def client(first: int) -> None:
        together.wait()
        for number in range(first, count * questions, count):
            answers[number] = ask(server, asked[number])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    together.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, answers


def run_side(arguments: argparse.Namespace) -> None:
    """Serves and asks in this process; prints one line of JSON."""
    folder = Path(arguments.folder)
    if arguments.side == "engine":
        server: Any = EngineServer(folder, arguments.slots)
    else:
        server = TorchServer(folder, 1 if arguments.side == "single" else arguments.slots, arguments.torch_threads)
    clients(server, arguments.clients, 1, offset=10_000)
    seconds, answers = clients(server, arguments.clients, arguments.questions, offset=0)
    server.close()
    firsts = sorted(each.first_s for each in answers.values())
    figures = {
        "tokens_per_second": sum(len(each.ids) for each in answers.values()) / seconds,
        "first_token_median_s": statistics.median(firsts),
        "first_token_p95_s": firsts[int(0.95 * (len(firsts) - 1))],
        "total_median_s": statistics.median(each.total_s for each in answers.values()),
        "answers": [answers[number].ids for number in sorted(answers)],
    }
    print(json.dumps(figures))


def main() -> None:
    """Runs all sides and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("quickstart", "small"), default="quickstart")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--questions", type=int, default=2, help="of each client, one after the other")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--torch_threads", type=int, default=0, help="of PyTorch; 0 leaves the choice to it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file
    if arguments.side:
        run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), arguments.size)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(arguments.repeat):
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}", f"--folder={folder}"]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
    truth = runs["single"][0]["answers"]
    report: dict[str, Any] = {"size": arguments.size, "clients": arguments.clients, "answers": len(truth)}
    for side, figures in runs.items():
        report[side] = {
            key: round(statistics.median(run[key] for run in figures), 3) for key in figures[0] if key != "answers"
        }
        report[side]["equal"] = min(sum(map(list.__eq__, run["answers"], truth)) for run in figures)
        print(side, report[side])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
