"""Conversations in ChatML: the prompt format, `chat`, `chat_stream`, and the stop words of `generate`.

    <|im_start|>system\\n{system}<|im_end|>
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n{response}<|im_end|>   (per turn of the history)
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n

Roles, line breaks and contents are tokenized separately, so that no token spans two of them.
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
MAX_WINDOW = 6144  # tokens of a prompt, if generation_config.json gives no limit
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = (*GROUNDING_TAGS, "<img>", "</img>", "<imgpad>")
IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)

Turn = Sequence[str | None]  # (query, response); the response is None if the query was not answered


def images_of(texts: Sequence[str], images: Sequence[Image.Image]) -> list[list[str | Image.Image]]:
    """The images of every text: the path or URL of each `<img>..</img>`, or the next of `images` if it is empty.

    Raises:
      ValueError: if the number of `images` is not that of the empty `<img></img>`.
    """
    paths_of_texts = [IMAGE.findall(text) for text in texts]
    empty = sum(paths.count("") for paths in paths_of_texts)
    if empty != len(images):
        raise ValueError(f"{len(images)} images given for {empty} empty <img></img> in history and query")
    remaining = iter(images)
    return [[path or next(remaining) for path in paths] for paths in paths_of_texts]


def make_context(
    tokenizer: Any, query: str, history: Sequence[Turn], system: str, max_window_size: int
) -> tuple[list[int], int]:
    """The ids of the prompt, and the number of oldest turns of `history` that it omits.

    It keeps the newest turns that fit, together with the system text, in fewer than `max_window_size` ids; the query
    is always kept in full. Image slots hold no path, so paths may have any length. Control tokens written by the user
    are encoded as plain text, and so are image tags written by the model.
    """

    def encode(text: str, allowed: Sequence[str] = ()) -> list[int]:
        return tokenizer.encode(text, allowed_special=set(allowed))

    newline = encode("\n")
    end = [tokenizer.im_end_id]

    def message(role: str, content: list[int]) -> list[int]:
        return [tokenizer.im_start_id, *encode(role), *newline, *content]

    def user(text: str) -> list[int]:
        return message("user", encode(IMAGE.sub("<img></img>", text), IMAGE_TAGS))

    first = message("system", encode(system, GROUNDING_TAGS)) + end
    last = newline + user(query) + end + newline + message("assistant", [])
    kept: list[int] = []
    omitted = len(history)
    for question, answer in reversed(history):
        turn = newline + user(question or "") + end + newline
        if answer is not None:
            turn += message("assistant", encode(answer, GROUNDING_TAGS)) + end
        if len(first) + len(turn) + len(kept) >= max_window_size:
            break
        kept = turn + kept
        omitted -= 1
    return first + kept + last, omitted


class StopWords(LogitsProcessor):
    """Ends an answer after any of several sequences of ids, by forcing `end_id` in the next step.

    Args:
      sequences: non-empty sequences of ids.
      end_id: the id of `<|endoftext|>`.
      start: the length of the prompt, in which the sequences are ignored.

    Raises:
      ValueError: if a sequence is empty.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], end_id: int, start: int):
        if not all(len(ids) for ids in sequences):
            raise ValueError("stop_words_ids has an empty sequence; pass non-empty lists of ids")
        self.sequences = [list(ids) for ids in sequences]
        self.end_id = end_id
        self.start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answers = input_ids[:, self.start :].tolist()
        ended = [any(answer[-len(ids) :] == ids for ids in self.sequences) for answer in answers]
        if any(ended):
            scores = scores.clone()
            rows = torch.tensor(ended, device=scores.device)
            scores[rows] = torch.finfo(scores.dtype).min
            scores[rows, self.end_id] = 0
        return scores


class _Streamer:
    """A streamer for `generate`: puts every new id into a queue. Setting `closed` aborts `generate`."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[Any] = queue.Queue()
        self.closed = threading.Event()
        self._is_prompt = True

    def put(self, ids: torch.Tensor) -> None:
        if self.closed.is_set():
            raise _Closed
        if not self._is_prompt:
            for token in ids.flatten().tolist():
                self.tokens.put(token)
        self._is_prompt = False

    def end(self) -> None:
        """Does nothing: the thread that runs `generate` marks the end of the queue."""


class _Closed(Exception):
    """The consumer has stopped reading the answer."""


class ChatMixin:
    """Adds `chat` and `chat_stream` to a causal language model, and stop words to its `generate`."""

    @torch.no_grad()
    def generate(self: Any, inputs: Any = None, *arguments: Any, stop_words_ids: Any = None, **settings: Any) -> Any:
        """The `generate` of transformers with stop words.

        Args:
          inputs: see transformers.
          arguments: see transformers.
          stop_words_ids: sequences of ids. An answer ends after any of them; it contains the stop word, followed by
            `<|endoftext|>`.
          settings: see transformers.

        Raises:
          ValueError: if there are stop words but no end token, or a stop word is empty.
        """
        config = arguments[0] if arguments else settings.get("generation_config")
        config = self.generation_config if config is None else config
        stop_words_ids = getattr(config, "stop_words_ids", None) if stop_words_ids is None else stop_words_ids
        if stop_words_ids:
            end = settings.get("eos_token_id", config.eos_token_id)
            end = end[-1] if isinstance(end, Sequence) else end
            if end is None:
                raise ValueError("stop_words_ids needs an eos_token_id to end answers with; set one")
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
        """Answers a query.

        Args:
          tokenizer: the QWenTokenizer of this model.
          query: text, with `<img>path or URL</img>` for images (see `tokenizer.from_list_format`).
          history: the history that an earlier call returned; a list is extended in place. Its images are read again.
            The response of a turn may be None.
          system: the system text.
          append_history: whether this turn is appended to the history.
          stop_words_ids: sequences of ids after which the answer also ends; the answer contains them.
          generation_config: replaces that of the model, if given.
          images: the Pillow images of the whole conversation, in order: one for every empty `<img></img>` in history
            and query. Further images are inserted before the query, as `Picture 1: <img></img>`.
          settings: arguments of `generate`, such as `max_new_tokens` or `do_sample`, and `max_window_size`.

        Returns:
          The answer, and the history including this turn.

        Raises:
          ValueError: if this is not a chat model, an image cannot be read, there are too few images, or `<img>` is not
            closed.
          TypeError: if `stream` is given; use `chat_stream` instead.
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
        """Streams the answer of `chat`: after every token yields the answer so far, without incomplete characters.

        The arguments and errors are those of `chat`. `history` is not changed. The prompt is checked before this
        returns.
        """
        turns = list(history or ())
        _, ids, settings = self._conversation(
            tokenizer, query, turns, system, images, stop_words_ids, generation_config, settings
        )
        streamer = _Streamer()

        def run() -> None:
            try:
                self.generate(ids, streamer=streamer, **settings)
                streamer.tokens.put(None)
            except BaseException as error:
                streamer.tokens.put(error)

        def read() -> Iterator[str]:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            new: list[int] = []
            try:
                while (token := streamer.tokens.get()) is not None:
                    if isinstance(token, BaseException):
                        raise token
                    new.append(token)
                    answer = _answer(new, tokenizer)
                    if len(answer) == len(new):
                        yield tokenizer.decode(answer, errors="ignore").strip()
            finally:
                streamer.closed.set()
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
        """The query with its images numbered, the ids [1, L] of the prompt, and the arguments of `generate`."""
        config = self.generation_config if generation_config is None else generation_config
        chat_format = getattr(config, "chat_format", None) or getattr(self.generation_config, "chat_format", None)
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}, so this model was not trained on dialogues; use "
                "generate, or set model.generation_config.chat_format = 'chatml' if it was"
            )
        given = list(images or ())
        texts = [*(question or "" for question, _ in turns), query]
        numbered = sum(len(IMAGE.findall(text)) for text in texts)
        untagged = len(given) - sum(text.count("<img></img>") for text in texts)
        query = "".join(f"Picture {numbered + k + 1}: <img></img>\n" for k in range(untagged)) + query
        texts[-1] = query
        images_of_texts = images_of(texts, given)
        window = settings.pop("max_window_size", None) or getattr(config, "max_window_size", MAX_WINDOW)
        ids, omitted = make_context(tokenizer, query, turns, system, window)
        kept = [image for of_text in images_of_texts[omitted:] for image in of_text]
        if kept:
            if self.transformer.visual is None:
                raise ValueError("the conversation has images, but this is a language model without a vision tower")
            opened = [read_image(image) if isinstance(image, str) else image for image in kept]
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
    """The ids that end an answer; `<|endoftext|>` comes last."""
    return [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]


def _answer(new: list[int], tokenizer: Any) -> list[int]:
    """The new ids before the first one that ends the answer."""
    stops = _stops(tokenizer)
    return new[: next((k for k, token in enumerate(new) if token in stops), len(new))]
