"""Conversations in ChatML: the prompt that `chat` builds, `chat` and `chat_stream`, and stop words of `generate`.

    <|im_start|>system\\n{system}<|im_end|>
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n{response}<|im_end|>   (per turn of the history)
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n

Roles, line breaks and contents are tokenized apart, so that none of them merges with its neighbour.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from .visual import preprocess, read_image

DEFAULT_SYSTEM = "You are a helpful assistant."
MAX_WINDOW = 6144  # tokens, where generation_config.json is silent
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = (*GROUNDING_TAGS, "<img>", "</img>", "<imgpad>")
PICTURE = re.compile(r"<img>(.*?)</img>", re.DOTALL)

Turn = Sequence[str | None]  # (query, response); None for a query that has no response


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
        turn = line + asked(question or "") + end + line
        if answer is not None:
            turn += said("assistant", encode(answer, GROUNDING_TAGS)) + end
        if len(first) + len(turn) + len(kept) >= max_window_size:
            break
        kept = turn + kept
        dropped -= 1
    return first + kept + last, dropped


class StopWords(LogitsProcessor):
    """Ends an answer after any of several sequences of ids: the step that follows one can only give `end_id`.

    Args:
      sequences: ids, none of the sequences empty.
      end_id: of `<|endoftext|>`.
      start: the length of the prompt, whose own ids end nothing.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], end_id: int, start: int):
        if not all(len(ids) for ids in sequences):
            raise ValueError("stop_words_ids has an empty sequence; give lists of ids")
        self.sequences, self.end_id, self.start = [list(ids) for ids in sequences], end_id, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ended = [any(row[-len(ids) :] == ids for ids in self.sequences) for row in input_ids[:, self.start :].tolist()]
        if any(ended):
            scores = scores.clone()
            rows = torch.tensor(ended, device=scores.device)
            scores[rows] = torch.finfo(scores.dtype).min
            scores[rows, self.end_id] = 0
        return scores


class _Pieces:
    """What `generate` takes for a streamer: hands every new id to the thread that iterates; `close` ends the answer."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[Any] = queue.Queue()
        self.closed = threading.Event()
        self._is_prompt = True

    def put(self, ids: torch.Tensor) -> None:
        if self.closed.is_set():
            raise _Closed
        if not self._is_prompt:
            for token in ids.flatten().tolist():
                self.waiting.put(token)
        self._is_prompt = False

    def end(self) -> None:
        """`generate` is done; the thread that runs it says so itself."""


class _Closed(Exception):
    """Nobody reads the answer any more."""


class ChatMixin:
    """Gives a causal language model `chat` and `chat_stream`, and its `generate` stop words."""

    @torch.no_grad()
    def generate(self: Any, inputs: Any = None, *arguments: Any, stop_words_ids: Any = None, **settings: Any) -> Any:
        """transformers' `generate`, and `stop_words_ids`: sequences of ids after each of which an answer ends.

        The answer keeps the stop word, and an `<|endoftext|>` follows it.
        """
        config = arguments[0] if arguments else settings.get("generation_config")
        config = self.generation_config if config is None else config
        stop_words_ids = getattr(config, "stop_words_ids", None) if stop_words_ids is None else stop_words_ids
        if stop_words_ids:
            end = settings.get("eos_token_id", config.eos_token_id)
            end = end[-1] if isinstance(end, Sequence) else end
            if end is None:
                raise ValueError("stop_words_ids needs an eos_token_id to end with; set one")
            prompt = next((x for x in (inputs, settings.get("input_ids")) if x is not None), None)
            length = 0 if prompt is None or settings.get("inputs_embeds") is not None else prompt.shape[1]
            others = settings.pop("logits_processor", None) or []
            settings["logits_processor"] = LogitsProcessorList([*others, StopWords(stop_words_ids, int(end), length)])
        return super().generate(inputs, *arguments, **settings)  # type: ignore[misc]

    def chat(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Turn] | None = None,
        system: str = DEFAULT_SYSTEM,
        append_history: bool = True,
        stop_words_ids: Sequence[Sequence[int]] | None = None,
        generation_config: Any = None,
        images: Sequence[Image.Image] | None = None,
        **settings: Any,
    ) -> tuple[str, Sequence[Turn]]:
        """Answers `query`; returns the answer and the history, to which this turn has been appended.

        Args:
          tokenizer: the QWenTokenizer of this model.
          query: text, with `<img>path or URL</img>` for pictures (`tokenizer.from_list_format` writes it).
          history: what an earlier call returned; a list is extended in place. Its pictures are read again. A turn
            whose response is None is a query that nobody answered.
          system: the system text.
          append_history: whether this turn joins the history.
          stop_words_ids: sequences of ids after which the answer ends, too; it keeps them.
          generation_config: instead of the model's; None for that.
          images: Pillow pictures of the whole conversation, in order, for every empty `<img></img>` of history and
            query. Those that have no such place yet are put before the query, as `Picture 1: <img></img>`.
          settings: of `generate`, such as `max_new_tokens` or `do_sample`, and `max_window_size`.

        Raises:
          ValueError: if this is no chat model, a picture cannot be read or has no place, or `<img>` is not closed.
          TypeError: for `stream`; `chat_stream` is what streams.
        """
        if "stream" in settings:
            raise TypeError("chat has no argument `stream`; use chat_stream, which yields the answer as it grows")
        turns = history if isinstance(history, list) else list(history or ())
        query, ids, settings = self._conversation(
            tokenizer, query, turns, system, images, stop_words_ids, generation_config, settings
        )
        new = self.generate(ids, **settings)[0, ids.shape[1] :].tolist()
        response = tokenizer.decode(_answer(new, tokenizer)).strip()
        if append_history:
            turns.append((query, response))
        return response, turns

    def chat_stream(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Turn] | None = None,
        system: str = DEFAULT_SYSTEM,
        stop_words_ids: Sequence[Sequence[int]] | None = None,
        generation_config: Any = None,
        images: Sequence[Image.Image] | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """Yields the answer of `chat` as far as it has come, again with every token; `history` stays as it is.

        Characters that are not whole yet are left out. See `chat` about the arguments and what it raises; the prompt
        is checked before this returns.
        """
        turns = list(history or ())
        _, ids, settings = self._conversation(
            tokenizer, query, turns, system, images, stop_words_ids, generation_config, settings
        )
        pieces = _Pieces()

        def run() -> None:
            try:
                self.generate(ids, streamer=pieces, **settings)
                pieces.waiting.put(None)
            except BaseException as error:
                pieces.waiting.put(error)

        def read() -> Iterator[str]:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            new: list[int] = []
            try:
                while (token := pieces.waiting.get()) is not None:
                    if isinstance(token, BaseException):
                        raise token
                    new.append(token)
                    answer = _answer(new, tokenizer)
                    if len(answer) == len(new):
                        yield tokenizer.decode(answer, errors="ignore").strip()
            finally:
                pieces.closed.set()
                thread.join()

        return read()

    def _conversation(
        self: Any,
        tokenizer: Any,
        query: str,
        turns: list[Turn],
        system: str,
        images: Sequence[Image.Image] | None,
        stop_words_ids: Sequence[Sequence[int]] | None,
        generation_config: Any,
        settings: dict[str, Any],
    ) -> tuple[str, torch.Tensor, dict[str, Any]]:
        """The query with its pictures numbered, the ids [1, L] of the prompt, and the arguments of `generate`."""
        config = self.generation_config if generation_config is None else generation_config
        chat_format = getattr(config, "chat_format", None) or getattr(self.generation_config, "chat_format", None)
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}, as of a model that was not trained on dialogues; "
                "use generate, or set model.generation_config.chat_format = 'chatml' if it was"
            )
        given = list(images or ())
        texts = [*(question or "" for question, _ in turns), query]
        numbered = sum(len(PICTURE.findall(text)) for text in texts)
        unplaced = len(given) - sum(text.count("<img></img>") for text in texts)
        query = "".join(f"Picture {numbered + k + 1}: <img></img>\n" for k in range(unplaced)) + query
        texts[-1] = query
        pictures = pictures_of(texts, given)
        window = settings.pop("max_window_size", None) or getattr(config, "max_window_size", MAX_WINDOW)
        ids, dropped = make_context(tokenizer, query, turns, system, window)
        shown = [image for found in pictures[dropped:] for image in found]
        if shown:
            if self.transformer.visual is None:
                raise ValueError("the conversation has pictures, but this is a language model without a vision tower")
            opened = [read_image(image) if isinstance(image, str) else image for image in shown]
            settings["pixel_values"] = preprocess(opened, self.config.visual["image_size"])
        if generation_config is not None:
            settings["generation_config"] = generation_config
        if stop_words_ids is not None:
            settings["stop_words_ids"] = stop_words_ids
        settings.setdefault("eos_token_id", _stops(tokenizer))
        settings.setdefault("pad_token_id", tokenizer.eod_id)
        settings.setdefault("return_dict_in_generate", False)
        prompt = torch.tensor([ids], device=self.device)
        settings.setdefault("attention_mask", torch.ones_like(prompt))
        return query, prompt, settings


def _stops(tokenizer: Any) -> list[int]:
    """The ids that end an answer; `<|endoftext|>` is the last."""
    return [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]


def _answer(new: list[int], tokenizer: Any) -> list[int]:
    """New ids up to the first one that ends an answer."""
    stops = _stops(tokenizer)
    return new[: next((k for k, token in enumerate(new) if token in stops), len(new))]
