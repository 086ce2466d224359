"""A ChatML conversation with a checkpoint: pictures and questions in, answers with boxes out.

Source: the released chat (modeling_qwen.py, qwen_generation_utils.py), which answers from the newest turns that fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.config import Config
from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import make_prompt, tokenize_pieces
from qwenvl_jax.data.images.decode import decode_image
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.readers.conversations import prompt_parts
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.decode import generate

# Tokens of the system's turn and of earlier turns; the question itself is never cut (released max_window_size).
MAX_WINDOW = 6144

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
      forgotten: how many of the oldest questions, with their answers, the model was not shown any more.
    """

    text: str
    boxes: list[tuple[str, tuple[float, ...]]]
    image: bytes | None
    tokens: int
    forgotten: int = 0


class Conversation:
    """Keeps the turns; every question is answered from the newest of them that fit in MAX_WINDOW tokens.

    Pictures keep their numbers when older turns are forgotten.

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
        self._sizes: list[tuple[int, int]] = []
        self._pending: list[int] = []

    def add_image(self, payload: bytes) -> None:
        """Shows a picture with the next question. Raises UserError if the bytes are not an image."""
        size = decode_image(payload).size
        self._pending.append(len(self._images))
        self._images.append(payload)
        self._sizes.append(size)

    def ask(self, question: str) -> Answer:
        """Asks, remembers the answer and returns it. If that fails, the conversation is as it was before.

        Pairs of `<ref>`, `<box>` and `<quad>` in the question are tags, as in training and in the released `chat`.
        """
        parts: list[dict[str, Any]] = [{"image": index} for index in self._pending]
        self._turns.append({"role": "user", "parts": [*parts, *prompt_parts(question)]})
        try:
            pieces, forgotten = self._shown()
            prompt = make_prompt(
                pieces,
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
        except BaseException:
            self._turns.pop()
            raise
        self._pending = []
        self._forget_images(forgotten)
        self._turns.append({"role": "assistant", "parts": [{"text": _PLACE}]})
        self._answers.append(self._as_pieces(new))
        text = self._tokenizer.decode(new)
        return Answer(text, self._boxes(text), self._last_image(), len(prompt.tokens_L), forgotten)

    def _shown(self) -> tuple[list[Piece], int]:
        """The newest turns, the question last, and how many pairs of older ones are left out.

        The system's turn is always there. Pairs of a question and its answer are added newest first while all together
        have fewer than MAX_WINDOW tokens, and none beyond the first that does not fit (released make_context).
        """
        turns: list[list[Piece]] = []
        for piece in self._pieces():  # no answer holds <|im_start|>, which ends it
            if piece.kind == "special" and piece.value == tags.IM_START:
                turns.append([])
            turns[-1].append(piece)
        system, *talk = turns
        current = talk[-2:]  # the question, and the answer's beginning
        pairs = [[*asked, *answered] for asked, answered in zip(talk[:-2:2], talk[1:-2:2], strict=True)]
        total, kept = self._length(system) - 1, 0  # the released count leaves out the line break after the system's
        for pair in reversed(pairs):
            total += self._length(pair)
            if total >= MAX_WINDOW:
                break
            kept += 1
        forgotten = len(pairs) - kept
        return [piece for part in (system, *pairs[forgotten:], *current) for piece in part], forgotten

    def _length(self, pieces: list[Piece]) -> int:
        return len(tokenize_pieces(pieces, self._tokenizer, self._config.model.resampler.queries).tokens_L)

    def _forget_images(self, pairs: int) -> None:
        """Frees the pictures of turns that no later question will show; boxes may still refer to the last one."""
        last = self._last_shown()
        for turn in self._turns[: 2 * pairs]:
            for part in turn["parts"]:
                if part.get("image", last) != last:
                    self._images[part["image"]] = b""

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
