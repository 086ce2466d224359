"""A ChatML conversation with a checkpoint: pictures and questions in, answers with boxes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.config import Config
from qwenvl_jax.data import tags
from qwenvl_jax.data.examples import make_prompt
from qwenvl_jax.data.formats import Piece, chat_pieces
from qwenvl_jax.data.image import decode_image
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.decode import generate

# Stands for an answer until its own pieces replace it; no text can contain it by accident.
_PLACE = "\0answer\0"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
      text: with special tokens written out.
      boxes: (reference, [x1, y1, x2, y2] in pixels) on the picture shown last; empty without pictures.
      image: that picture, encoded, or None.
      tokens: length of the prompt.
    """

    text: str
    boxes: list[tuple[str, tuple[float, ...]]]
    image: bytes | None
    tokens: int


class Conversation:
    """Keeps the turns; every question is answered from the whole conversation, as the released `chat` does.

    Args:
      params: the checkpoint's parameters.
      config: its training config, which says how large images are.
      tokenizer: of the config.
      max_new: tokens of an answer at most.
    """

    def __init__(self, params: Mapping[str, Any], config: Config, tokenizer: Tokenizer, *, max_new: int = 256):
        self._params, self._config, self._tokenizer, self._max_new = dict(params), config, tokenizer, max_new
        ids = {name: token for token, name in tokenizer.special_names.items()}
        self._stops = [ids[name] for name in (tags.IM_END, tags.IM_START, tags.ENDOFTEXT)]
        self.reset()

    def reset(self) -> None:
        """Forgets everything, pictures that were not asked about too."""
        self._turns: list[dict[str, Any]] = []
        self._answers: list[list[Piece]] = []
        self._images: list[bytes] = []
        self._pending: list[int] = []

    def add_image(self, payload: bytes) -> None:
        """Shows a picture with the next question. Raises UserError if the bytes are not an image."""
        decode_image(payload)
        self._pending.append(len(self._images))
        self._images.append(payload)

    def ask(self, question: str) -> Answer:
        """Asks, remembers the answer and returns it."""
        parts: list[dict[str, Any]] = [{"image": index} for index in self._pending]
        self._turns.append({"role": "user", "parts": [*parts, {"text": question}]})
        self._pending = []
        prompt = make_prompt(
            self._pieces(),
            self._images,
            self._tokenizer,
            self._config.model.resampler.queries,
            self._config.data.image_size,
        )
        new = generate(
            self._params,
            self._config.model,
            dataclasses.replace(self._config.compute, attention="auto"),
            self._tokenizer,
            [prompt],
            max_new=self._max_new,
            stop_ids=self._stops,
        )[0]
        self._turns.append({"role": "assistant", "parts": [{"text": _PLACE}]})
        self._answers.append(self._as_pieces(new))
        text = self._tokenizer.decode(new)
        return Answer(text, self._boxes(text), self._last_image(), len(prompt.tokens_L))

    def _pieces(self) -> list[Piece]:
        """The conversation so far, earlier answers as the special tokens and texts that they were."""
        pieces: list[Piece] = []
        answers = iter(self._answers)
        for piece in chat_pieces(self._turns, open_end=True):
            pieces += next(answers) if piece.supervised and piece.value == _PLACE else [piece]
        return pieces

    def _as_pieces(self, ids: list[int]) -> list[Piece]:
        pieces: list[Piece] = []
        ordinary: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in self._tokenizer.special_names:
                ordinary.append(token)
                continue
            if ordinary:
                pieces.append(Piece("text", self._tokenizer.decode(ordinary)))
                ordinary = []
            # An image that the model writes has no pixels, so its tags are left out.
            name = self._tokenizer.special_names.get(token) if token is not None else None
            if name is not None and name not in (tags.IMG, tags.IMG_END, tags.IMGPAD):
                pieces.append(Piece("special", name))
        return pieces

    def _last_image(self) -> bytes | None:
        shown = [part["image"] for turn in self._turns for part in turn["parts"] if "image" in part]
        return self._images[shown[-1]] if shown else None

    def _boxes(self, text: str) -> list[tuple[str, tuple[float, ...]]]:
        image = self._last_image()
        if image is None:
            return []
        width, height = decode_image(image).size
        return [(ref, tags.to_pixels(box, width, height)) for ref, boxes in tags.parse_boxes(text) for box in boxes]
