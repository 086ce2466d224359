"""Refusals of the server in the format of OpenAI's errors: a status, one sentence, a type, a code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from starlette.responses import JSONResponse

# Codes of invalid requests that are named in several places, as OpenAI's API answers them.
INVALID = "invalid_value"
CONTEXT_EXCEEDED = "context_length_exceeded"

# Without this header OpenAI's clients repeat a request whose status is 500 or more, twice by default.
DO_NOT_REPEAT = {"x-should-retry": "false"}

# The `type` of an error by its status; every other status below 500 is an invalid request.
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


@dataclasses.dataclass(eq=False)
class Refusal(Exception):
    """Ends a request with an error.

    Attributes:
      status: of HTTP.
      message: one sentence that says what is wrong and what to do.
      code: a word for programs.
      param: the part of the request that is wrong, such as `messages[0].content`.
      headers: of the response.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def error(self) -> dict[str, object]:
        """The object under `error`."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse({"error": self.error}, self.status, dict(self.headers))


def bad_request(message: str, param: str | None = None, code: str = INVALID) -> Refusal:
    """A request that must be corrected before it is sent again: status 400."""
    return Refusal(400, message, code, param)


def later(status: int, message: str, code: str, seconds: float) -> Refusal:
    """A request that may be repeated after so many seconds."""
    return Refusal(status, message, code, headers={"Retry-After": str(max(1, round(seconds)))})
