"""`chat` and `chat_stream`, and the stop words of `generate`."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import LogitsProcessorList

from .qwen_generation_utils import (
    DEFAULT_SYSTEM,
    MAX_WINDOW,
    StopWordsLogitsProcessor,
    Turn,
    chatml_prompt,
    check_conversation,
    checked_stop_words,
)
from .visual import preprocess, read_image

IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
EMPTY_IMAGE = "<img></img>"


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
    def generate(
        self: Any,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        *arguments: Any,
        stop_words_ids: Any = None,
        **settings: Any,
    ) -> Any:
        """The `generate` of transformers with stop words.

        Args:
          inputs: see transformers.
          generation_config: see transformers. It may have `stop_words_ids`.
          logits_processor: see transformers.
          arguments: see transformers.
          stop_words_ids: sequences of ids. An answer ends after any of them; it contains the stop word, followed by
            `<|endoftext|>`. Text that the model writes with other ids is not found; for text use `stop_strings`.
          settings: see transformers.

        Raises:
          ValueError: if there are stop words but no end token, or they are not lists of ids.
        """
        config = self.generation_config if generation_config is None else generation_config
        stop_words_ids = getattr(config, "stop_words_ids", None) if stop_words_ids is None else stop_words_ids
        if stop_words := checked_stop_words(() if stop_words_ids is None else stop_words_ids):
            end = settings.get("eos_token_id", config.eos_token_id)
            end = end[-1] if isinstance(end, Sequence) else end
            if end is None:
                raise ValueError("stop_words_ids needs an eos_token_id to end answers with; set one")
            prompt = next((x for x in (inputs, settings.get("input_ids")) if x is not None), None)
            length = 0 if prompt is None or settings.get("inputs_embeds") is not None else prompt.shape[1]
            stop = StopWordsLogitsProcessor(stop_words, int(end), length)
            logits_processor = LogitsProcessorList([*(logits_processor or ()), stop])
        return super().generate(inputs, generation_config, logits_processor, *arguments, **settings)  # type: ignore[misc]

    def chat(
        self: Any,
        tokenizer: Any,
        query: str,
        history: Sequence[Turn] | None = None,
        system: str = DEFAULT_SYSTEM,
        append_history: bool = True,
        stream: bool | None = None,
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
          stream: must not be True; use `chat_stream`.
          stop_words_ids: sequences of ids after which the answer also ends; the answer contains them.
          generation_config: replaces that of the model, if given.
          images: the Pillow images of the whole conversation, in order: one for every empty `<img></img>` in system,
            history and query. Further images are inserted before the query, as `Picture 1: <img></img>`.
          settings: arguments of `generate`, such as `max_new_tokens` or `do_sample`, and `max_window_size`. End tokens
            are added to those of ChatML.

        Returns:
          The answer, and the history including this turn.

        Raises:
          ValueError: if this is not a chat model, an image cannot be read, there are too few images, `<img>` is not
            closed, or a turn is not a pair of texts.
          TypeError: if `stream` is True, or an argument asks for something else than one answer.
        """
        if stream:
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
        logits_processor: Any = None,
        generation_config: Any = None,
        images: Sequence[Image.Image] | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """Streams the answer of `chat`: after every token yields the answer so far.

        It has no incomplete characters and no special tokens except those of references and boxes. The arguments and
        errors are those of `chat`, and `logits_processor` is that of `generate`. `history` is not changed. The prompt
        is checked before this returns.
        """
        turns = list(history or ())
        _, ids, settings = self._conversation(
            tokenizer, query, turns, system, images, stop_words_ids, generation_config, settings
        )
        streamer = _Streamer()

        def run() -> None:
            try:
                self.generate(ids, logits_processor=logits_processor, streamer=streamer, **settings)
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
                    flags = {"skip_special_tokens": True, "keep_image_special": True, "errors": "ignore"}
                    yield tokenizer.decode(_answer(new, tokenizer), **flags).strip()
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
        check_conversation(query, turns, system)
        given = list(images or ())
        texts = [system, *(question or "" for question, _ in turns), query]
        numbered = sum(len(IMAGE.findall(text)) for text in texts)
        untagged = len(given) - sum(text.count(EMPTY_IMAGE) for text in texts)
        query = "".join(f"Picture {numbered + k + 1}: {EMPTY_IMAGE}\n" for k in range(untagged)) + query
        texts[-1] = query
        of_system, *of_turns = images_of(texts, given)
        window = settings.pop("max_window_size", None)
        window = getattr(config, "max_window_size", MAX_WINDOW) if window is None else window
        # The images are passed as pixels, so their slots hold no path, and paths may have any length.
        bare_system, *bare_queries, bare_query = (IMAGE.sub(EMPTY_IMAGE, text) for text in texts)
        bare_turns = [(asked, answer) for asked, (_, answer) in zip(bare_queries, turns, strict=True)]
        ids, omitted = chatml_prompt(tokenizer, bare_query, bare_turns, bare_system, window)
        kept = [image for of_text in (of_system, *of_turns[omitted:]) for image in of_text]
        if kept:
            if self.transformer.visual is None:
                raise ValueError("the conversation has images, but this is a language model without a vision tower")
            opened = [read_image(image) if isinstance(image, str) else image for image in kept]
            settings["pixel_values"] = preprocess(opened, self.config.visual["image_size"])
        prompt = torch.tensor([ids], device=self.device)
        return query, prompt, _one_answer(settings, tokenizer, stop_words_ids, generation_config, prompt)


def _one_answer(
    settings: dict[str, Any],
    tokenizer: Any,
    stop_words_ids: Sequence[Sequence[int]] | None,
    generation_config: Any,
    prompt: torch.Tensor,
) -> dict[str, Any]:
    """The arguments of `generate` for one answer to a prompt.

    Raises:
      TypeError: if `settings` ask for several answers, or for something else than ids.
    """
    if (settings.get("num_return_sequences") or 1) > 1 or settings.get("return_dict_in_generate"):
        raise TypeError("chat returns the text of one answer; use generate for several answers or for their scores")
    if generation_config is not None:
        settings["generation_config"] = generation_config
    if stop_words_ids is not None:
        settings["stop_words_ids"] = stop_words_ids
    ends = settings.get("eos_token_id")
    ends = list(ends) if isinstance(ends, Sequence) else [] if ends is None else [ends]
    settings["eos_token_id"] = [*(token for token in ends if token not in _stops(tokenizer)), *_stops(tokenizer)]
    settings["return_dict_in_generate"] = False
    settings.setdefault("pad_token_id", tokenizer.eod_id)
    settings.setdefault("attention_mask", torch.ones_like(prompt))
    return settings


def _stops(tokenizer: Any) -> list[int]:
    """The ids that end an answer; `<|endoftext|>` comes last."""
    return [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]


def _answer(new: list[int], tokenizer: Any) -> list[int]:
    """The new ids before the first one that ends the answer."""
    stops = _stops(tokenizer)
    return new[: next((k for k, token in enumerate(new) if token in stops), len(new))]
