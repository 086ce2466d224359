"""Asks a model about pictures, row by row: memory grows with the batch and not with the number of pictures."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Tokens, tokenize_pieces
from qwenvl_jax.data.images.exact import size_of
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.pointing import last_named, regions_of
from qwenvl_jax.data.readers.conversations import prompt_parts
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.asking.ahead import in_order
from qwenvl_jax.evaluation.asking.questions import too_long
from qwenvl_jax.evaluation.generation.generate import GREEDY, Generator
from qwenvl_jax.evaluation.generation.pictures import Pictures, read_picture
from qwenvl_jax.evaluation.generation.requests import Picture, Request
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits, Sampling
from qwenvl_jax.evaluation.inference.answer_file import AnswerFile
from qwenvl_jax.evaluation.inference.inputs import Input
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError

THREADS = min(8, 2 * (os.cpu_count() or 1))
AHEAD = 64  # inputs whose pictures are read and decoded before they are needed
LINE_SECONDS = 60.0  # between two lines of progress, if there is no terminal

_TAG = re.compile(r"(</?(?:ref|box|quad)>)")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
      chat: whether the prompt is a turn of a dialogue (ChatML), or `<img>..</img>text` as in the released scripts.
      max_new_tokens: the largest number of new tokens.
      min_new_tokens: tokens before which no answer ends.
      sampling: how tokens are chosen.
      search: beam search, or None.
      samples: answers per input: independent draws, or the best beams.
      seed: of draws. An input's draws depend on it, on the input and on nothing else.

    Raises:
      UserError: if they contradict each other.
    """

    chat: bool = False
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    sampling: Sampling = GREEDY
    search: BeamSearch | None = None
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"--samples={self.samples} must be at least 1")
        if self.search is not None and self.sampling.temperature:
            raise UserError("--num_beams and --temperature exclude each other; leave one of them out")
        if self.search is not None and self.samples > self.search.beams:
            raise UserError(f"--samples={self.samples} is more than --num_beams={self.search.beams}; raise --num_beams")
        if self.search is None and self.samples > 1 and not self.sampling.temperature:
            raise UserError("without --temperature all samples would be equal; set it, or leave out --samples")


class Prepared(NamedTuple):
    """An input on its way: its tokens and pictures, or the reason why it cannot be asked."""

    number: int
    tokens: Tokens | None
    pictures: tuple[Picture, ...]
    sizes: tuple[tuple[int, int], ...]
    why: str


class Written(NamedTuple):
    """An answer and, of a beam search, its score."""

    ids: Sequence[int]
    score: float | None


class Inference:
    """The inputs of one command and the model that answers them.

    Args:
      model: loads it; called only if something is to be asked.
      tokenizer: its vocabulary.
      queries: features per image.
      positions: tokens of the longest prompt that is asked.
      image_size: pixels of an image's side.
      decoding: how answers are written.
      batch_size: answers, or beams, that are continued together.
      mesh: of the parameters; None for their device.
    """

    def __init__(
        self,
        model: Callable[[], LoadedModel],
        tokenizer: Tokenizer,
        queries: int,
        positions: int,
        image_size: int,
        decoding: Decoding,
        batch_size: int,
        mesh: Mesh | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._queries = queries
        self._positions = positions
        self._decoding = decoding
        self._batch_size = batch_size
        self._mesh = mesh
        self._pictures = Pictures(image_size)

    def answer(self, inputs: Sequence[Input], answers: AnswerFile) -> None:
        """Adds a row for every input that has none yet. One that cannot be asked has a row that says why."""
        todo = [each for each in inputs if each.key not in answers.rows]
        if not todo:
            return
        with _Progress(len(todo)) as progress:

            def add(row: dict[str, Any]) -> None:
                answers.add(row)
                progress.advance()

            asked: dict[int, Prepared] = {}
            for number, written in self._written(todo, asked, add):
                add(self._row(todo[number], asked.pop(number), written))

    def _written(
        self, todo: Sequence[Input], asked: dict[int, Prepared], add: Callable[[dict[str, Any]], None]
    ) -> Iterator[tuple[int, list[Written]]]:
        """The answers to inputs by their numbers, as they end; `asked` holds the inputs that are being answered."""
        decoding = self._decoding
        names = (tags.IM_END, tags.IM_START, tags.ENDOFTEXT) if decoding.chat else (tags.ENDOFTEXT,)
        stops = tuple(self._tokenizer.special_by_name[name] for name in names)
        limits = Limits(decoding.max_new_tokens, decoding.min_new_tokens, stops)
        requests = self._requests(todo, asked, add)
        rows = len(todo) * (decoding.search.beams if decoding.search else decoding.samples)
        generator = Generator(self._model(), min(self._batch_size, rows), self._mesh)
        longest = self._longest(todo)
        if decoding.search is not None:
            for key, beams in generator.search(requests, limits, decoding.search, longest):
                number, _ = _numbers(key)
                yield number, [Written(beam.ids, beam.score) for beam in beams[: decoding.samples]]
            return
        waiting: dict[int, dict[int, Written]] = {}
        for key, ids in generator.generate(requests, limits, decoding.sampling, longest):
            number, sample = _numbers(key)
            samples = waiting.setdefault(number, {})
            samples[sample] = Written(ids, None)
            if len(samples) == decoding.samples:
                yield number, [samples[index] for index in sorted(waiting.pop(number))]

    def _requests(
        self, todo: Sequence[Input], asked: dict[int, Prepared], add: Callable[[dict[str, Any]], None]
    ) -> Iterator[Request]:
        """Requests in order; the next pictures are read and decoded in the background."""
        with concurrent.futures.ThreadPoolExecutor(THREADS, "read") as pool:
            try:
                for prepared in in_order(pool, lambda number: self._prepare(todo, number), range(len(todo)), AHEAD):
                    if prepared.tokens is None:
                        add(_unanswered(todo[prepared.number], prepared.why))
                        continue
                    asked[prepared.number] = prepared._replace(pictures=())  # the request alone needs the pixels
                    yield from self._drawn(todo[prepared.number], prepared)
            finally:
                pool.shutdown(cancel_futures=True)

    def _drawn(self, each: Input, prepared: Prepared) -> Iterator[Request]:
        """The requests of one input: one per sample, or a single one for a beam search."""
        assert prepared.tokens is not None
        tokens = prepared.tokens
        for sample in range(1 if self._decoding.search else self._decoding.samples):
            text = f"{self._decoding.seed}/{sample}/{each.key}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            yield Request((prepared.number, sample), tokens.tokens_L, tokens.image_query_L, prepared.pictures, seed)

    def _prepare(self, todo: Sequence[Input], number: int) -> Prepared:
        each = todo[number]
        try:
            if each.why:
                raise UserError(each.why)
            tokens = self._tokens(each.prompt, len(each.images))
            if not len(tokens.tokens_L):
                raise UserError("there are neither pictures nor a prompt")
            encoded = [_named(path, read_picture, path) for path in each.images]
            shown = zip(each.images, encoded, strict=True)
            pictures = tuple(_named(path, self._pictures.picture, payload, None) for path, payload in shown)
        except UserError as error:
            return Prepared(number, None, (), (), str(error))
        return Prepared(number, tokens, pictures, tuple(map(size_of, encoded)), "")

    def _tokens(self, prompt: str, images: int) -> Tokens:
        """Raises UserError if the prompt has too many tokens, or the vocabulary lacks its tags."""
        tokens = tokenize_pieces(pieces_of(prompt, images, self._decoding.chat), self._tokenizer, self._queries)
        if len(tokens.tokens_L) > self._positions:
            raise UserError(too_long(len(tokens.tokens_L), self._positions))
        return tokens

    def _longest(self, todo: Sequence[Input]) -> int:
        """Tokens of the longest prompt."""
        longest = 0
        for prompt in {(each.prompt, len(each.images)) for each in todo if not each.why}:
            with contextlib.suppress(UserError):  # it costs only its input, later
                longest = max(longest, len(self._tokens(*prompt).tokens_L))
        return longest

    def _row(self, each: Input, prepared: Prepared, written: Sequence[Written]) -> dict[str, Any]:
        answers = [self._answer(each.prompt, prepared.sizes, *answer) for answer in written]
        row = _about(each) | answers[0]
        return row | ({"samples": answers} if self._decoding.samples > 1 else {})

    def _answer(
        self, prompt: str, sizes: Sequence[tuple[int, int]], ids: Sequence[int], score: float | None
    ) -> dict[str, Any]:
        text = self._tokenizer.decode(ids).strip()
        row: dict[str, Any] = {"answer": text, "boxes": boxes_of(prompt, text, sizes) if sizes else []}
        return row if score is None else row | {"score": score}


def pieces_of(prompt: str, images: int, chat: bool) -> list[Piece]:
    """Pictures and the prompt about them. `<ref>`, `<box>` and `<quad>` are tags, as in the released tokenizer."""
    if chat:
        parts: list[Mapping[str, Any]] = [{"image": index} for index in range(images)]
        return chat_pieces([{"role": "user", "parts": [*parts, *prompt_parts(prompt)]}], open_end=True)
    pieces = [Piece("image", index) for index in range(images)]
    for number, text in enumerate(_TAG.split(prompt)):
        if text:
            pieces.append(Piece("special" if number % 2 else "text", text))
    return pieces


def boxes_of(prompt: str, answer: str, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The boxes of an answer in pixels, to a hundredth; a box that the prompt opens is one, too.

    Args:
      prompt: with its tags.
      answer: to it.
      sizes: width and height of the pictures, in pixels; not empty.

    Returns:
      Of each box `ref`, `image`, the index of the picture in which it lies (`data.pointing`), and `box`.
    """
    named = last_named(prompt, range(len(sizes)))
    opened = prompt.rstrip()
    if opened.endswith(tags.BOX):
        start = opened.rfind(tags.REF)
        answer = (opened[start:] if start >= 0 else tags.BOX) + answer
    return [
        {"ref": each["ref"], "image": each["image"], "box": [round(value, 2) for value in each["box"]]}
        for each in regions_of(answer, sizes, len(sizes) - 1 if named is None else named)
        if "box" in each
    ]


def _named(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function; its errors name the picture."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _about(each: Input) -> dict[str, Any]:
    return {"id": each.id, "images": list(each.images), "prompt": each.prompt}


def _unanswered(each: Input, why: str) -> dict[str, Any]:
    return _about(each) | {"answer": None, "boxes": [], "why": why}


def _numbers(key: Any) -> tuple[int, int]:
    number, sample = key
    return int(number), int(sample)


def settings_of(
    decoding: Decoding, prompts: Sequence[str], identity: Mapping[str, Any], vocabulary: str, image_size: int
) -> dict[str, Any]:
    """JSON values on which answers depend, by the names that messages use."""
    settings = dataclasses.asdict(decoding)
    weights = json.dumps([identity, vocabulary], sort_keys=True)
    return {
        "checkpoint": hashlib.sha256(weights.encode()).hexdigest()[:16],
        "prompt": list(prompts),
        "prompt form": "chat" if settings.pop("chat") else "released",
        "image size": image_size,
        "decoding": settings,
    }


class _Progress:
    """A bar on a terminal, and elsewhere a line every minute, both with the remaining time."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = self._said = time.monotonic()
        self._bar = log.progress("answering", total)

    def __enter__(self) -> _Progress:
        self._advance = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def advance(self) -> None:
        """One more input has its row."""
        self._done += 1
        self._advance(1)
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS and not log.console().is_terminal:
            self._said = now
            rate = self._done / (now - self._began)
            minutes = (self._total - self._done) / rate / 60
            log.line(
                f"{self._done:,} of {self._total:,} answered, {rate:.2f} per second, about {minutes:.0f} minutes left"
            )
