"""Replies of a language model, each stored under the digest of its request, so that none is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

Request = Mapping[str, Any]


def request_digest(request: Request) -> str:
    """64 hex digits of everything that is asked: model, messages, temperature, seed and limits."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()  # texts may have lone surrogates


class Replies:
    """A folder with one file per reply.

    A stored reply has `text` and `finish`, or `refused` with what the endpoint said against the request; and `usage`.
    """

    def __init__(self, folder: str):
        self._folder = storage.path(folder)

    def get(self, request: Request) -> dict[str, Any] | None:
        """The stored reply; None if there is none, or if its file is damaged."""
        path = self._path(request)
        if not storage.exists(path):
            return None
        try:
            stored = artifacts.read_json(path)
        except UserError:
            return None
        return stored if isinstance(stored, dict) and ("text" in stored or "refused" in stored) else None

    def put(self, request: Request, reply: Mapping[str, Any]) -> None:
        """Stores a reply, whole or not at all."""
        artifacts.write_json(self._path(request), reply)

    def is_empty(self) -> bool:
        """Whether no reply is stored."""
        return not storage.is_folder(self._folder) or not storage.names(self._folder)

    def _path(self, request: Request) -> Any:
        digest = request_digest(request)
        return self._folder / digest[:2] / f"{digest}.json"
