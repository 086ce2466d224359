"""The body of a request to `/v1/chat/completions`: which parameters there are, and what they may be.

A parameter that would change the answer and is not served is refused, never ignored. Source: OpenAI's API reference of
chat completions.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
from pydantic import BeforeValidator, ConfigDict, Field

from qwenvl_jax.runtime.errors import UserError, nearest
from qwenvl_jax.serving.options import LEAST_TEMPERATURE, AnswerOptions
from qwenvl_jax.serving.refusals import CONTEXT_EXCEEDED, Refusal, bad_request
from qwenvl_jax.serving.stop_strings import check_stops

MAX_MESSAGES = 1_000
MAX_CHARACTERS = 200_000  # of all texts together; tens of times what the model's positions hold

# Parameters that change no answer: they are accepted and ignored.
HARMLESS = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "service_tier", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)

# Parameters that are not served, with the values that ask for nothing; null does too.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "prediction": (),
    "web_search_options": (),
    "audio": (),
    "moderation": (),
}

_NO_TOOLS = "the model calls no tools; leave out all that concerns them, and ask in words for what you need"

# What to do instead of asking for what is not served; by default, to leave it out.
_INSTEAD = {
    "n": "send the request several times, each with its own seed",
    "response_format": "leave it out, ask in words for the format, and check the answer",
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), _NO_TOOLS),
}


# What pydantic says in words of Python.
_IN_WORDS_OF_JSON = {"none_required": "it must be null", "model_type": "it must be an object"}


def _as_list(value: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise ValueError("it must be a text or a list of texts")
    return [value] if isinstance(value, str) else value


def _as_parts(value: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise ValueError("it must be a text or a list of parts")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class PictureUrl(_Strict):
    """Where a picture is. `detail` changes nothing: every picture has the same number of tokens."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Part(_Strict):
    """A part of a message: a text or a picture. A breakpoint of OpenAI's cache of prompts changes no answer."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: PictureUrl | None = None
    prompt_cache_breakpoint: Any = None

    @pydantic.model_validator(mode="after")
    def _has_its_value(self) -> Part:
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of type {self.type!r} must have {self.type!r}, and not {other!r}")
        return self


class Message(_Strict):
    """What one side says.

    `boxes` comes back with an answer of this API; LiteLLM puts it under `provider_specific_fields`. The text has them.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]
    name: str | None = None
    boxes: Any = None
    provider_specific_fields: Any = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_what_says_nothing(cls, message: Any) -> Any:
        """Without further keys that are null or empty, such as `tool_calls` of an answer that called no tool."""
        if not isinstance(message, dict):
            return message
        return {key: value for key, value in message.items() if key in cls.model_fields or value not in (None, [])}

    @property
    def side(self) -> str:
        """Who says it; the developer is OpenAI's newer word for the system."""
        return "system" if self.role == "developer" else self.role


class StreamOptions(_Strict):
    """Whether the last chunk of a stream counts tokens. `include_obfuscation` is accepted; nothing is obfuscated."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(_Strict):
    """The parameters that are served; see docs/serving.md."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, defaults: AnswerOptions) -> AnswerOptions:
        """How the answer is to be written.

        Who gives `top_p` or `top_k` alone asks for a draw: without a temperature it is then 1, as OpenAI's
        default. Without `seed` every request draws anew.

        Args:
          defaults: of what the request leaves out.

        Raises:
          UserError: for values that `AnswerOptions` refuses.
        """
        draws = self.top_k or (self.top_p or 1) < 1
        values: dict[str, Any] = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": 1.0 if self.temperature is None and draws and not defaults.temperature else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": secrets.randbits(32) if self.seed is None else self.seed,
            "stop": None if self.stop is None else tuple(self.stop),
        }
        return dataclasses.replace(defaults, **{name: value for name, value in values.items() if value is not None})

    def dialogue(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The turns for the engine, and the addresses of the pictures by their indices.

        Successive messages of one side are one turn, with a line break between them.
        """
        turns: list[dict[str, Any]] = []
        addresses: list[str] = []
        for message in self.messages:
            parts: list[dict[str, Any]] = []
            for part in message.content:
                if part.image_url is not None:
                    parts.append({"image": len(addresses)})
                    addresses.append(part.image_url.url)
                else:
                    parts.append({"text": part.text})
            if turns and turns[-1]["role"] == message.side:
                turns[-1]["parts"] += [{"text": "\n"}, *parts]
            else:
                turns.append({"role": message.side, "parts": parts})
        return turns, addresses


def parse_request(body: bytes, max_pictures: int) -> ChatRequest:
    """Reads and checks the body of a request.

    Args:
      body: JSON.
      max_pictures: the largest number of pictures of a request.

    Raises:
      Refusal: with status 400, if something in it is wrong or not served.
    """
    try:
        values = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"the body is not JSON that can be read ({error}); correct it", code="invalid_json") from None
    if not isinstance(values, dict):
        raise bad_request("the body must be a JSON object with 'model' and 'messages'")
    try:
        request = ChatRequest.model_validate(_served(values))
    except pydantic.ValidationError as error:
        raise _refusal(error) from None
    _check(request, max_pictures)
    return request


def _served(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those that ask for nothing."""
    served: dict[str, Any] = {}
    for name, value in values.items():
        if name in ChatRequest.model_fields:
            served[name] = value
        elif name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise bad_request(
                    f"{name} is not served; {_INSTEAD.get(name, 'leave it out')}", name, "unsupported_parameter"
                )
        elif name not in HARMLESS:
            close = nearest(name, [*ChatRequest.model_fields, *NEUTRAL])
            raise bad_request(
                f"there is no parameter {name[:100]!r}{close or '; leave it out'}", name[:100], "unknown_parameter"
            )
    return served


def _refusal(error: pydantic.ValidationError) -> Refusal:
    """The first mistake in one sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for step in first["loc"]:
        param += f"[{step}]" if isinstance(step, int) else f".{str(step)[:100]}"
    param = param.removeprefix(".")
    says = _IN_WORDS_OF_JSON.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden":
        return bad_request(f"{param} is not known; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"{param} is missing; give it", param, "missing_parameter")
    return bad_request(f"{param} cannot be used: {says[:1].lower()}{says[1:]}", param)


def _check(request: ChatRequest, max_pictures: int) -> None:
    """Raises Refusal for what concerns several values at once."""
    sides = [message.side for message in request.messages]
    if any(side == "system" and before != "system" for before, side in itertools.pairwise(sides)):
        raise bad_request("only the first messages may be the system's; move the others there", "messages")
    if sides[-1] != "user":
        raise bad_request("the last message must be the user's, which is what is answered", "messages")
    _check_names(request.messages)
    pictures = 0
    characters = 0
    for index, message in enumerate(request.messages):
        shown = sum(part.type == "image_url" for part in message.content)
        if shown and message.role != "user":
            raise bad_request("only the user's messages may show pictures", f"messages[{index}].content")
        for key in ("boxes", "provider_specific_fields"):
            if getattr(message, key) is not None and message.role != "assistant":
                raise bad_request(f"only the assistant's messages may have {key}", f"messages[{index}].{key}")
        pictures += shown
        characters += sum(len(part.text or "") for part in message.content)
    if pictures > max_pictures:
        raise bad_request(
            f"{pictures:,} pictures are more than {max_pictures}; show fewer", "messages", "too_many_images"
        )
    if characters > MAX_CHARACTERS:
        raise bad_request(
            f"{characters:,} characters are more than {MAX_CHARACTERS:,}; leave out the oldest messages",
            "messages",
            CONTEXT_EXCEEDED,
        )
    last = request.messages[-1].content
    if not any(part.image_url or (part.text or "").strip() for part in last):
        raise bad_request("the last message says nothing; ask something", "messages")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    if request.temperature and request.temperature < LEAST_TEMPERATURE:
        raise bad_request(
            f"temperature {request.temperature} must be 0, or at least {LEAST_TEMPERATURE}", "temperature"
        )
    try:
        check_stops(request.stop or ())
    except UserError as error:
        raise bad_request(str(error), "stop") from None
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream=true", "stream_options")


def _check_names(messages: Sequence[Message]) -> None:
    """Raises Refusal for names that tell apart who speaks on one side: the model's dialogue has no place for them."""
    known: dict[str, str] = {}
    for index, message in enumerate(messages):
        if message.name is None:
            continue
        first = known.setdefault(message.side, message.name)
        if first != message.name:
            raise bad_request(
                f"{first[:50]!r} and {message.name[:50]!r} both speak as the {message.side}, but a dialogue has one "
                "of each; write the names into the texts instead",
                f"messages[{index}].name",
            )
