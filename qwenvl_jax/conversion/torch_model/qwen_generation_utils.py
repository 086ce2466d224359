"""The helpers of the published file of this name: prompts in ChatML, the text of an answer, and stop words.

    <|im_start|>system\\n{system}<|im_end|>
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n{response}<|im_end|>   (per turn of the history)
    \\n<|im_start|>user\\n{query}<|im_end|>\\n<|im_start|>assistant\\n

Roles, line breaks and contents are tokenized separately, so that no token spans two of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

DEFAULT_SYSTEM = "You are a helpful assistant."
MAX_WINDOW = 6144  # tokens of a prompt, if generation_config.json gives no limit
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = (*GROUNDING_TAGS, "<img>", "</img>", "<imgpad>")

Turn = Sequence[str | None]  # (query, response); the response is None if the query was not answered
HistoryType = list[tuple[str, str]]
TokensType = list[int]
BatchTokensType = list[list[int]]


def make_context(
    tokenizer: Any,
    query: str,
    history: Sequence[Turn] | None = None,
    system: str = "",
    max_window_size: int = MAX_WINDOW,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """The prompt of a query as text and as ids. The ids contain the paths of the images.

    Args:
      tokenizer: the QWenTokenizer of the model.
      query: the text of the user.
      history: earlier turns.
      system: the system text.
      max_window_size: see `chatml_prompt`.
      chat_format: "chatml", or "raw" for a base model, whose prompt is the query alone.

    Raises:
      ValueError: if an image is not closed or its path too long, or a turn is not a pair of texts.
      NotImplementedError: if `chat_format` is unknown.
    """
    if chat_format == "chatml":
        ids, _ = chatml_prompt(tokenizer, query, history or (), system, max_window_size)
        return tokenizer.decode(ids), ids
    if chat_format != "raw":
        raise _unknown_format(chat_format)
    if history or system:
        warnings.warn("a prompt in the format 'raw' is the query alone: history and system are left out", stacklevel=2)
    return query, tokenizer.encode(query)


def chatml_prompt(
    tokenizer: Any, query: str, history: Sequence[Turn], system: str, max_window_size: int
) -> tuple[list[int], int]:
    """The ids of the prompt, and the number of oldest turns of `history` that it omits.

    It keeps the newest turns that fit, together with the system text, in fewer than `max_window_size` ids; the query
    is always kept in full. Control tokens in a text are encoded as plain text, and so are image tags written by the
    model.

    Raises:
      ValueError: see `make_context`.
    """
    check_conversation(query, history, system)

    def encode(text: str, allowed: Sequence[str] = ()) -> list[int]:
        return tokenizer.encode(text, allowed_special=set(allowed))

    newline = encode("\n")
    end = [tokenizer.im_end_id]

    def message(role: str, text: str, allowed: Sequence[str] = IMAGE_TAGS) -> list[int]:
        return [tokenizer.im_start_id, *encode(role), *newline, *encode(text, allowed)]

    first = message("system", system) + end
    last = newline + message("user", query) + end + newline + message("assistant", "")
    kept: list[int] = []
    omitted = len(history)
    for question, answer in reversed(history):
        turn = newline + message("user", question or "") + end + newline
        if answer is not None:
            turn += message("assistant", answer, GROUNDING_TAGS) + end
        if len(first) + len(turn) + len(kept) >= max_window_size:
            break
        kept = turn + kept
        omitted -= 1
    return first + kept + last, omitted


def check_conversation(query: Any, history: Any, system: Any) -> None:
    """Raises ValueError if query or system is no text, or a turn of the history is not a pair (query, response)."""
    for name, text in (("query", query), ("system", system)):
        if not isinstance(text, str):
            hint = (
                "; join a list of elements with tokenizer.from_list_format" if isinstance(text, (list, tuple)) else ""
            )
            raise ValueError(f"{name} must be a text, not {type(text).__name__}{hint}")
    for number, turn in enumerate(history):
        texts = turn if isinstance(turn, (list, tuple)) else ()
        if len(texts) != 2 or not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(
                f"history[{number}] is {turn!r}; a turn is (query, response), two texts, of which the response may be "
                "None. Messages with roles are for tokenizer.apply_chat_template"
            )


def decode_tokens(
    tokens: torch.Tensor | Sequence[int],
    tokenizer: Any,
    raw_text_len: int,
    context_length: int,
    chat_format: str,
    verbose: bool = False,
    return_end_reason: bool = False,
    errors: str = "replace",
) -> str | tuple[str, str]:
    """The answer in the ids of prompt and answer, without white space at its ends.

    Args:
      tokens: ids [L] of the prompt, followed by those of the answer.
      tokenizer: the QWenTokenizer of the model.
      raw_text_len: the number of characters of the prompt, as returned by `make_context`.
      context_length: the number of ids of the prompt.
      chat_format: "chatml": the answer ends before `<|im_end|>` or `<|im_start|>`; without either of them it is whole
        (the published function then loses the last token). "raw": every `<|endoftext|>` is removed.
      verbose: whether the decoded text and the reason of its end are printed.
      return_end_reason: whether the result is a pair of the answer and what ended it.
      errors: how bytes that are not UTF-8 are decoded; see `bytes.decode`.

    Raises:
      NotImplementedError: if `chat_format` is unknown.
    """
    ids = tokens.tolist() if isinstance(tokens, torch.Tensor) else list(tokens)
    end = len(ids)
    reason = f"Gen length {len(ids)}"
    if chat_format == "chatml":
        stops = (tokenizer.im_start_id, tokenizer.im_end_id)
        end = next((k for k in range(context_length, len(ids)) if ids[k] in stops), len(ids))
        reason = f"Gen {tokenizer.decode([ids[end]])!r}" if end < len(ids) else reason
    elif chat_format != "raw":
        raise _unknown_format(chat_format)
    text = tokenizer.decode(ids[:end], errors=errors)[raw_text_len:]
    answer = (text.replace("<|endoftext|>", "") if chat_format == "raw" else text).strip()
    if verbose:
        print(f"Generated: {text!r}\nEnd: {reason}\nAnswer: {answer!r}")
    return (answer, reason) if return_end_reason else answer


def get_stop_words_ids(chat_format: str, tokenizer: Any) -> list[list[int]]:
    """The sequences of ids that end an answer. Raises NotImplementedError if `chat_format` is unknown."""
    if chat_format == "chatml":
        return [[tokenizer.im_end_id], [tokenizer.im_start_id]]
    if chat_format == "raw":
        return [tokenizer.encode("Human:"), [tokenizer.eod_id]]
    raise _unknown_format(chat_format)


def _unknown_format(chat_format: Any) -> NotImplementedError:
    return NotImplementedError(f"Unknown chat format {chat_format!r}; it is 'chatml' or 'raw'")


class StopWordsLogitsProcessor(LogitsProcessor):
    """Ends an answer after any of several sequences of ids, by forcing `eos_token_id` in the next step.

    Args:
      stop_words_ids: non-empty sequences of ids.
      eos_token_id: the id of `<|endoftext|>`.
      start: the number of ids at the beginning of a row in which the sequences are ignored.

    Raises:
      ValueError: if there is no sequence, or one is empty or does not consist of ids.
    """

    def __init__(self, stop_words_ids: Iterable[Iterable[int]], eos_token_id: int, start: int = 0):
        self.stop_words_ids = checked_stop_words(stop_words_ids)
        if not self.stop_words_ids:
            raise ValueError("stop_words_ids is empty; leave it out, or pass a list of lists of ids")
        self.eos_token_id = eos_token_id
        self.start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answers = input_ids[:, self.start :].tolist()
        ended = [any(answer[-len(ids) :] == ids for ids in self.stop_words_ids) for answer in answers]
        if any(ended):
            scores = scores.clone()
            rows = torch.tensor(ended, device=scores.device)
            scores[rows] = torch.finfo(scores.dtype).min
            scores[rows, self.eos_token_id] = 0
        return scores


def checked_stop_words(stop_words_ids: Any) -> list[list[int]]:
    """Sequences of ids as lists.

    Raises:
      ValueError: if they are not a list of non-empty sequences of ids.
    """
    try:
        if isinstance(stop_words_ids, (str, bytes)) or any(isinstance(ids, (str, bytes)) for ids in stop_words_ids):
            raise TypeError
        sequences = [[token.__index__() for token in ids] for ids in stop_words_ids]
    except (TypeError, AttributeError):
        raise ValueError(
            f"stop_words_ids is a list of lists of ids, not {stop_words_ids!r}; encode every stop word with "
            "tokenizer.encode, or pass texts as stop_strings (with tokenizer=tokenizer)"
        ) from None
    if any(not ids or min(ids) < 0 for ids in sequences):
        raise ValueError(f"stop_words_ids has an empty sequence or a negative id: {sequences}")
    return sequences
