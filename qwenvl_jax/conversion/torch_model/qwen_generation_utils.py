"""Conversations in ChatML: the prompt that `chat` builds, and `chat` itself.

    <|im_start|>system\\n{system}<|im_end|>
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n{response}<|im_end|>   (per turn of the history)
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n

Roles, line breaks and contents are tokenized apart, so that none of them merges with its neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .visual import preprocess, read_image

DEFAULT_SYSTEM = "You are a helpful assistant."
MAX_WINDOW = 6144  # tokens, where generation_config.json is silent
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = (*GROUNDING_TAGS, "<img>", "</img>", "<imgpad>")
PICTURE = re.compile(r"<img>(.*?)</img>", re.DOTALL)

Turn = Sequence[str]  # (query, response)


def pictures_of(texts: Sequence[str], images: Sequence[Image.Image]) -> list[list[str | Image.Image]]:
    """Per text its pictures: the path or URL of every `<img>..</img>`, the next one of `images` where it is empty.

    Raises:
      ValueError: if `images` are not as many as the empty places.
    """
    paths = [PICTURE.findall(text) for text in texts]
    empty = sum(not path for found in paths for path in found)
    if empty != len(images):
        raise ValueError(f"{len(images)} images given for {empty} empty <img></img> in history and query")
    waiting = iter(images)
    return [[path or next(waiting) for path in found] for found in paths]


def make_context(
    tokenizer: Any, query: str, history: Sequence[Turn], system: str, max_window_size: int
) -> tuple[list[int], int]:
    """Ids of the prompt, and how many turns of `history` (oldest first) it leaves out.

    The newest turns that fit beside the system text and the query in less than `max_window_size` ids stay; the query
    is never cut. The slots of pictures are empty, so that a path of any length will do. Control tokens that a user
    writes are plain text, and so are the image tags that a model writes.
    """

    def encode(text: str, allowed: Sequence[str] = ()) -> list[int]:
        return tokenizer.encode(text, allowed_special=set(allowed))

    line, end = encode("\n"), [tokenizer.im_end_id]

    def said(role: str, content: list[int]) -> list[int]:
        return [tokenizer.im_start_id, *encode(role), *line, *content]

    def asked(text: str) -> list[int]:
        return said("user", encode(PICTURE.sub("<img></img>", text), IMAGE_TAGS))

    first = said("system", encode(system, GROUNDING_TAGS)) + end
    last = line + asked(query) + end + line + said("assistant", [])
    kept: list[int] = []
    dropped = len(history)
    for question, answer in reversed(history):
        turn = line + asked(question) + end + line + said("assistant", encode(answer, GROUNDING_TAGS)) + end
        if len(first) + len(turn) + len(kept) >= max_window_size:
            break
        kept = turn + kept
        dropped -= 1
    return first + kept + last, dropped


class ChatMixin:
    """Gives a causal language model `chat`."""

    @torch.no_grad()
    def chat(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Turn] | None = None,
        system: str = DEFAULT_SYSTEM,
        images: Sequence[Image.Image] | None = None,
        **settings: Any,
    ) -> tuple[str, list[tuple[str, str]]]:
        """Answers `query`; returns the answer and the history with this turn at its end.

        Args:
          tokenizer: the QWenTokenizer of this model.
          query: text, with `<img>path or URL</img>` for pictures (`tokenizer.from_list_format` writes it).
          history: what an earlier call returned. Its pictures are read again.
          system: the system text.
          images: Pillow pictures of the whole conversation, in order, for every empty `<img></img>` of history and
            query. Those that have no such place yet are put before the query, as `Picture 1: <img></img>`.
          settings: of `generate`, such as `max_new_tokens`, `do_sample` or `generation_config`.

        Raises:
          ValueError: if this is no chat model, a picture cannot be read or has no place, or `<img>` is not closed.
        """
        config = settings.get("generation_config", self.generation_config)
        chat_format = getattr(config, "chat_format", None)
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}, as of a model that was not trained on dialogues; "
                "use generate, or set model.generation_config.chat_format = 'chatml' if it was"
            )
        turns, images = list(history or ()), list(images or ())
        texts = [*(question for question, _ in turns), query]
        numbered = sum(len(PICTURE.findall(text)) for text in texts)
        unplaced = len(images) - sum(text.count("<img></img>") for text in texts)
        query = "".join(f"Picture {numbered + k + 1}: <img></img>\n" for k in range(unplaced)) + query
        texts[-1] = query
        pictures = pictures_of(texts, images)
        ids, dropped = make_context(tokenizer, query, turns, system, getattr(config, "max_window_size", MAX_WINDOW))
        shown = [image for found in pictures[dropped:] for image in found]
        if shown:
            if self.transformer.visual is None:
                raise ValueError("the conversation has pictures, but this is a language model without a vision tower")
            opened = [read_image(image) if isinstance(image, str) else image for image in shown]
            settings["pixel_values"] = preprocess(opened, self.config.visual["image_size"])
        stops = [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]
        settings.setdefault("eos_token_id", stops)
        settings.setdefault("pad_token_id", tokenizer.eod_id)
        prompt = torch.tensor([ids], device=self.device)
        output = self.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0, len(ids) :].tolist()
        length = next((k for k, token in enumerate(output) if token in stops), len(output))
        response = tokenizer.decode(output[:length]).strip()
        return response, [*((question, answer) for question, answer in turns), (query, response)]
