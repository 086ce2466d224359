"""Answers in the form of OpenAI's chat completions: whole, or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data.pointing import regions_of
from qwenvl_jax.serving.answer import Finished
from qwenvl_jax.serving.dialogue import Turns, pictures_meant

DONE = b"data: [DONE]\n\n"
STILL_HERE = b": still here\n\n"  # a comment, which keeps proxies from closing the connection


class Completion:
    """The head that all parts of one response share.

    Attributes:
      id: of the response.
    """

    def __init__(self, model: str, turns: Turns, sizes: Sequence[tuple[int, int]], includes_usage: bool = False):
        """Begins a response.

        Args:
          model: the name under which it is served.
          turns: the dialogue.
          sizes: width and height of every picture of the dialogue.
          includes_usage: whether a stream counts tokens in a last chunk.
        """
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._turns = turns
        self._sizes = sizes
        self._includes_usage = includes_usage

    def whole(self, finished: Finished) -> dict[str, Any]:
        """The response to a request without `stream`."""
        message = {
            "role": "assistant",
            "content": finished.text,
            "refusal": None,
            "boxes": self._boxes(finished),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.reason}
        return {**self._head("chat.completion", [choice]), "usage": usage(finished), "forgotten": finished.forgotten}

    def begin(self) -> bytes:
        """The first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """The event of a piece of the answer."""
        return self._chunk({"content": text})

    def end(self, finished: Finished) -> bytes:
        """The last events of a stream: boxes and the reason of the end, and maybe the counted tokens."""
        end = self._chunk({"boxes": self._boxes(finished)}, finished.reason, forgotten=finished.forgotten)
        if self._includes_usage:
            end += event({**self._head("chat.completion.chunk", []), "usage": usage(finished)})
        return end + DONE

    def _boxes(self, finished: Finished) -> list[dict[str, Any]]:
        if not self._sizes:
            return []
        return regions_of(finished.text, self._sizes, *pictures_meant(self._turns, finished.forgotten))

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        counted = {"usage": None} if self._includes_usage else {}
        return event({**self._head("chat.completion.chunk", [choice]), **counted, **more})

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model, "choices": choices}


def usage(finished: Finished) -> dict[str, int]:
    """How many tokens an answer took."""
    total = finished.prompt_tokens + finished.new_tokens
    return {"prompt_tokens": finished.prompt_tokens, "completion_tokens": finished.new_tokens, "total_tokens": total}


def event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
