"""Asks an OpenAI-compatible endpoint (`POST URL/chat/completions`) with the standard library alone.

The key comes from an environment variable, is sent in the header `Authorization` alone, and is cut out of every text of
the endpoint before it is stored or shown. Redirects are not followed, because they would carry the key to another host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import ipaddress
import json
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.replies import Request

_MOST_BYTES = 8 << 20  # of a reply
_LONGEST_WAIT = 300.0  # seconds that Retry-After may ask for
_REFUSED = (400, 413, 422)  # against this request, not against its sender
_AGAIN = (408, 409, 425, 429)  # and all from 500


class NotAnsweredError(Exception):
    """A request without an answer, which may be sent again; `wait` is what the endpoint asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class RefusedError(Exception):
    """The endpoint refuses this request, and would refuse it again."""


@dataclasses.dataclass(frozen=True)
class Address:
    """An endpoint and the key for it.

    Attributes:
      url: up to and with the version, such as "https://api.example.com/v1".
      key_variable: the environment variable that holds the key; "" for an endpoint that needs none.
      timeout: of one request, in seconds, from its first byte to the last one of its answer.
    """

    url: str
    key_variable: str = ""
    timeout: float = 120.0


@dataclasses.dataclass(frozen=True)
class Completion:
    """The text of the model, why it stopped, and the tokens to pay for."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Deadline:
    """Ends the connections of one request after a time, also if the endpoint sends a byte now and then."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.over = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()

    def watched(self, kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        """The same kind of connection, ended by this deadline."""
        deadline = self

        class Watched(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                deadline._sockets.append(self.sock)
                if deadline.over:
                    raise TimeoutError

        return Watched

    def _end(self) -> None:
        self.over = True
        for connected in self._sockets:
            with contextlib.suppress(OSError):  # it is closed already
                connected.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._deadline.watched(http.client.HTTPConnection), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline):
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._deadline.watched(http.client.HTTPSConnection), request)


class Endpoint:
    """One endpoint and one key.

    Raises:
      UserError: if the URL or the key cannot be used.
    """

    def __init__(self, address: Address):
        self._address = address
        self._key = key_of(address.key_variable)
        self._url = checked_url(address.url, bool(self._key)) + "/chat/completions"

    def complete(self, request: Request) -> Completion:
        """One answer to one request, which is sent once.

        Raises:
          NotAnsweredError: after a time-out, a broken connection, an answer that is not whole or not JSON, or one of
            the codes 408, 409, 425, 429 and 5xx.
          RefusedError: for the codes 400, 413 and 422.
          UserError: for the other codes: the key, the URL or the model is wrong.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "qwenvl-jax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        message = urllib.request.Request(self._url, json.dumps(request).encode(), headers, method="POST")
        with _Deadline(self._address.timeout) as deadline:
            opener = urllib.request.build_opener(_NoRedirects, _Http(deadline), _Https(deadline))
            try:
                with opener.open(message, timeout=self._address.timeout) as answer:
                    body = self._read(answer, deadline)
            except urllib.error.HTTPError as error:
                raise self._error(error) from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a broken chunk or header
                reason = "the answer took too long" if deadline.over else f"{type(error).__name__}: {error}"
                raise NotAnsweredError(self._clean(ascii(reason)[1:-1])[:200]) from None
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            text = choice["message"]["content"] or ""
            finish = choice.get("finish_reason") or ""
            if not isinstance(text, str) or not isinstance(finish, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise NotAnsweredError("the answer is not the JSON of a chat completion") from None
        usage = value.get("usage")
        return Completion(
            self._clean(text),
            self._clean(finish),
            _tokens(usage, "prompt_tokens", estimated_tokens(json.dumps(request["messages"], ensure_ascii=False))),
            _tokens(usage, "completion_tokens", estimated_tokens(text)),
        )

    def _read(self, answer: http.client.HTTPResponse, deadline: _Deadline) -> bytes:
        """The whole body."""
        body = b""
        while block := answer.read1(1 << 16):
            body += block
            if len(body) > _MOST_BYTES:
                raise NotAnsweredError("the answer is too long")
        if deadline.over:  # which looks like the end of the body
            raise TimeoutError
        expected = answer.headers.get("Content-Length")
        if expected is not None and expected.isdecimal() and len(body) < int(expected):
            raise NotAnsweredError("the answer was cut off")
        return body

    def _error(self, error: urllib.error.HTTPError) -> Exception:
        says = ""
        with error:
            try:
                says = error.read(4000).decode(errors="replace")
            except (OSError, http.client.HTTPException, ValueError):
                says = ""
        text = self._clean(" ".join(says.split()))[:300]
        if error.code in _REFUSED:
            return RefusedError(f"HTTP {error.code}: {text}")
        if error.code in _AGAIN or error.code >= 500:
            return NotAnsweredError(f"HTTP {error.code}", retry_after(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            named = self._address.key_variable or "--key_variable"
            return UserError(f"the endpoint refuses the key with HTTP {error.code}; correct the one in {named}")
        return UserError(f"the endpoint answers HTTP {error.code} ({text}); correct --endpoint or --model")

    def _clean(self, text: str) -> str:
        """The text without the key and without lone surrogates."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return text.encode(errors="replace").decode()


def key_of(variable: str) -> str:
    """The key in an environment variable; "" if no variable is named.

    Raises:
      UserError: if the variable is not set, or its value cannot be sent in a header.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable} is not set; put the key of the endpoint there")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the value of {variable} has blanks or odd characters, which no key has; correct it")
    return key


def checked_url(url: str, with_key: bool) -> str:
    """The URL without a slash at its end.

    Raises:
      UserError: if it is not http(s), has a name and password, or would send a key unencrypted to another machine.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("--endpoint is not a URL such as https://api.example.com/v1; correct it")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("--endpoint must be a plain URL without password, query and fragment; name a --key_variable")
    if with_key and parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise UserError("--endpoint would send the key unencrypted to another machine; use https or no --key_variable")
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(value: str | None) -> float:
    """The seconds of the header Retry-After, which has a number or a date; 0 if it has neither."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else 0.0


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, for limits and for endpoints that do not count: one per three bytes."""
    return len(text.encode(errors="replace")) // 3 + 1


def _tokens(usage: Any, name: str, estimate: int) -> int:
    count = cast(Mapping[str, Any], usage).get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 1 << 40 else estimate
