"""A ChatML conversation with a checkpoint: pictures and questions in, answers with boxes out.

Source: the released chat (modeling_qwen.py, qwen_generation_utils.py), which answers from the newest turns that fit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import tokenize_pieces
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.readers.conversations import prompt_parts
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import GREEDY, Generator
from qwenvl_jax.evaluation.generation.pictures import Pictures
from qwenvl_jax.evaluation.generation.requests import Request
from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling
from qwenvl_jax.evaluation.generation.text_stream import TextStream
from qwenvl_jax.models.loaded import LoadedModel

# The system's turn and earlier turns have fewer tokens than this; the question is never cut (released max_window_size).
MAX_WINDOW = 6144

_STORED_PICTURES = 8  # whose features stay on the device between two questions

# Takes the position of an answer until the answer's pieces replace it; no text contains it by accident.
_ANSWER = "\0answer\0"


@dataclasses.dataclass(frozen=True)
class ChatAnswer:
    """An answer of the model.

    Attributes:
      text: with special tokens written out.
      boxes: (reference, [x1, y1, x2, y2] in pixels) on the picture shown last; empty without pictures.
      image: that picture, encoded, or None.
      tokens: length of the prompt.
      forgotten: how many of the oldest questions, with their answers, were left out of the prompt.
      stopped: whether Ctrl-C ended it.
    """

    text: str
    boxes: list[tuple[str, tuple[float, ...]]]
    image: bytes | None
    tokens: int
    forgotten: int = 0
    stopped: bool = False


class Conversation:
    """Keeps the turns; every question is answered from the newest turns that fit in MAX_WINDOW tokens.

    Pictures keep their numbers when older turns are forgotten.

    Args:
      model: the model that answers.
      tokenizer: the vocabulary that the model was trained with.
      image_size: pixels of an image's side.
      max_new_tokens: the largest number of tokens of an answer.
      sampling: how tokens are chosen.
      mesh: of the parameters; None for their device.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        image_size: int,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        mesh: Mesh | None = None,
    ) -> None:
        self._model = model
        self._mesh = mesh
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._pictures = Pictures(image_size)
        self._start()
        ids = tokenizer.special_by_name
        stop_ids = (ids[tags.IM_END], ids[tags.IM_START], ids[tags.ENDOFTEXT])
        self._limits = Limits(max_new_tokens=max_new_tokens, stop_ids=stop_ids)
        self.reset()

    def reset(self) -> None:
        """Forgets everything, including pictures that no question was asked about yet."""
        self._turns: list[dict[str, Any]] = []
        self._answers: list[list[Piece]] = []
        self._images: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []
        self._pending: list[int] = []

    def _start(self) -> None:
        """A fresh generator: one that was interrupted may have lost its arrays half-way."""
        self._generator = Generator(self._model, 1, self._mesh, _STORED_PICTURES)

    def add_image(self, payload: bytes) -> None:
        """Shows a picture with the next question. Raises UserError if the bytes are not an image."""
        size = decode_image(payload).size
        self._pending.append(len(self._images))
        self._images.append(payload)
        self._sizes.append(size)

    def ask(self, question: str, hear: Callable[[str], Any] = lambda text: None) -> ChatAnswer:
        """Asks, remembers the answer and returns it. If that fails, the conversation does not change.

        Pairs of `<ref>`, `<box>` and `<quad>` in the question are tags, as in training and in the released `chat`.
        After Ctrl-C the answer is what was written so far; KeyboardInterrupt is raised if that is nothing.

        Args:
          question: of the user.
          hear: gets the answer piece by piece while it is written, in whole characters and whole tags.
        """
        parts: list[dict[str, Any]] = [{"image": index} for index in self._pending]
        self._turns.append({"role": "user", "parts": [*parts, *prompt_parts(question)]})
        new: list[int] = []
        stopped = False
        try:
            pieces, forgotten = self._shown()
            request = self._request(pieces)
            self._write(request, new, hear)
        except BaseException as error:
            self._start()
            stopped = isinstance(error, KeyboardInterrupt) and bool(new)
            if not stopped:
                self._turns.pop()
                raise
        self._pending = []
        self._forget_images(forgotten)
        self._turns.append({"role": "assistant", "parts": [{"text": _ANSWER}]})
        self._answers.append(self._as_pieces(new))
        text = self._tokenizer.decode(new)
        return ChatAnswer(text, self._boxes(text), self._last_image(), len(request.tokens_L), forgotten, stopped)

    def _request(self, pieces: list[Piece]) -> Request:
        tokens = tokenize_pieces(pieces, self._tokenizer, self._queries)
        shown = [self._pictures.picture(self._images[index], None) for index in tokens.image_indices]
        return Request(0, tokens.tokens_L, tokens.image_query_L, shown, seed=len(self._turns))

    def _write(self, request: Request, new: list[int], hear: Callable[[str], Any]) -> None:
        """Appends the ids of the answer to `new` as they come."""
        stream = TextStream(self._tokenizer)
        for ids in self._generator.stream(request, self._limits, self._sampling):
            new += ids
            hear(stream.add(ids))
        hear(stream.end())

    @property
    def _queries(self) -> int:
        return self._model.config.resampler.queries

    def _shown(self) -> tuple[list[Piece], int]:
        """The prompt of the last question, and the number of older pairs of question and answer that it leaves out.

        The system's turn always comes first. Pairs are added, the newest first, as long as the sum has fewer than
        MAX_WINDOW tokens; the first pair that does not fit ends this (released make_context).
        """
        turns: list[list[Piece]] = []
        for piece in self._pieces():  # no answer contains <|im_start|>, because that token ends it
            if piece.kind == "special" and piece.value == tags.IM_START:
                turns.append([])
            turns[-1].append(piece)
        system, *talk = turns
        current = talk[-2:]  # the question, and the answer's beginning
        pairs = [[*asked, *answered] for asked, answered in zip(talk[:-2:2], talk[1:-2:2], strict=True)]
        total = self._length(system) - 1  # the released count leaves out the line break after the system's turn
        kept = 0
        for pair in reversed(pairs):
            total += self._length(pair)
            if total >= MAX_WINDOW:
                break
            kept += 1
        forgotten = len(pairs) - kept
        return [piece for part in (system, *pairs[forgotten:], *current) for piece in part], forgotten

    def _length(self, pieces: list[Piece]) -> int:
        return len(tokenize_pieces(pieces, self._tokenizer, self._queries).tokens_L)

    def _forget_images(self, pairs: int) -> None:
        """Frees the pictures of turns that no later prompt contains, except the last one: boxes may refer to it."""
        last = self._last_shown()
        for turn in self._turns[: 2 * pairs]:
            for part in turn["parts"]:
                if part.get("image", last) != last:
                    self._images[part["image"]] = b""

    def _pieces(self) -> list[Piece]:
        """The conversation so far. Earlier answers are the special tokens and texts that the model wrote."""
        pieces: list[Piece] = []
        answers = iter(self._answers)
        for piece in chat_pieces(self._turns, open_end=True):
            pieces += next(answers) if piece.supervised and piece.value == _ANSWER else [piece]
        return pieces

    def _as_pieces(self, ids: list[int]) -> list[Piece]:
        """An answer as texts and special tokens. Its image tags are left out, because such an image has no pixels."""
        pieces: list[Piece] = []
        for name, group in itertools.groupby(ids, self._tokenizer.special_names.get):
            if name is None:
                pieces.append(Piece("text", self._tokenizer.decode(list(group))))
            elif name not in (tags.IMG, tags.IMG_END, tags.IMGPAD):
                pieces += [Piece("special", name) for _ in group]
        return pieces

    def _last_shown(self) -> int | None:
        shown = [part["image"] for turn in self._turns for part in turn["parts"] if "image" in part]
        return shown[-1] if shown else None

    def _last_image(self) -> bytes | None:
        last = self._last_shown()
        return None if last is None else self._images[last]

    def _boxes(self, text: str) -> list[tuple[str, tuple[float, ...]]]:
        last = self._last_shown()
        if last is None:
            return []
        width, height = self._sizes[last]
        return [(ref, tags.to_pixels(box, width, height)) for ref, boxes in tags.parse_boxes(text) for box in boxes]
