"""The client of Google Cloud Storage: gcsfs, made patient; `gcs_store` sends its requests through it.

gcsfs repeats a failed request for about half a minute, waits for an answer without a limit, answers from listings that
are minutes old and makes a missing bucket. `Gcs` repeats for `retries.patience()` seconds,
gives every request a time limit, compares lengths and checksums, remembers no listing and makes no bucket. It is
registered with fsspec, so etils, Orbax and TFDS go through it too.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import aiohttp
import google.auth.exceptions
import requests.exceptions
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, validate_response

from qwenvl_jax.runtime import retries
from qwenvl_jax.runtime.errors import StorageError, one_line
from qwenvl_jax.runtime.gcs_store import Store
from qwenvl_jax.runtime.retries import NotWhole

_TRANSIENT = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
    ChecksumError,
    NotWhole,
    requests.exceptions.RequestException,
    google.auth.exceptions.TransportError,
    google.auth.exceptions.RefreshError,
)
_SLOWEST = 256 << 10  # bytes a second that an upload is given time for
_DELETED_AT_ONCE = 32


class Gcs(GCSFileSystem):
    """gcsfs as described at the top of this file; one request of it is one request that is repeated."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("use_listings_cache", False)
        super().__init__(*args, **kwargs)

    async def _request(
        self,
        method: str,
        path: str,
        *args: str,
        headers: Any = None,
        json: Any = None,
        data: Any = None,
        cache_type: Any = None,
        cache_source: Any = None,
        expect: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One request, repeated as long as its failure may pass.

        Args:
          expect: a function of (status, headers, contents) that raises `NotWhole` if the answer is not whole.

        Raises:
          FileNotFoundError: if the server says that there is no such object or bucket.
          StorageError: if it refuses the request.
          StorageOutage: after `retries.patience()` seconds.
        """
        where = _name(path, args)
        url = self._format_path(path, args)
        length = len(data) if isinstance(data, (bytes, bytearray, memoryview)) else 0

        async def once() -> Any:
            await self._set_session()
            if hasattr(data, "seek"):
                data.seek(0)
            async with self.session.request(
                method=method,
                url=url,
                params=self._get_params(kwargs),
                json=json,
                headers=self._get_headers(headers),
                data=data,
                timeout=_time_limit(length),
            ) as answer:
                contents = await answer.read()
                if answer.status in retries.TRANSIENT_STATUS:
                    raise _Passing(f"HTTP {answer.status}")
                validate_response(answer.status, contents, path, args)
                if expect is not None:
                    expect(answer.status, answer.headers, contents)
                return answer.status, answer.headers, answer.request_info, contents

        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return await once()
            except FileNotFoundError:
                raise FileNotFoundError(2, "No such object or bucket", where) from None
            except (_Passing, *_TRANSIENT) as error:
                pause = retries.pause_after(attempt, started)
                if pause is None:
                    raise retries.exhausted(where, error) from error
                retries.note_failure(where, error, attempt)
                await asyncio.sleep(pause)
            except google.auth.exceptions.GoogleAuthError as error:
                raise StorageError(
                    f"{where} needs credentials ({one_line(error)}); run gcloud auth application-default login or set "
                    "GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            except (HttpError, OSError, ValueError) as error:
                if isinstance(error, HttpError) and error.code == 416:
                    raise
                if isinstance(error, FileExistsError):  # a precondition of the caller's
                    raise
                raise StorageError(
                    f"{where} cannot be used ({one_line(error)}); correct the path or ask for the permission"
                ) from error

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """As gcsfs, but what is written is one upload that can be repeated, and compared; gcsfs opens a session."""
        if mode == "wb":
            return _Upload(lambda payload: Store(self).write(f"gs://{path}", payload))
        return super()._open(path, mode, **kwargs)

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: an object store has no folders, and a bucket is not made by accident."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing, as `_mkdir`."""

    async def _delete_files(self, files: list[str], batchsize: int) -> Any:
        """One request per object: in a batch the failure of one is repeated five times only."""
        gate = asyncio.Semaphore(_DELETED_AT_ONCE)

        async def delete(file: str) -> None:
            async with gate:
                await self._rm_file(file)

        return await asyncio.gather(*(delete(file) for file in files), return_exceptions=True)


class _Upload(io.BytesIO):
    """A file to write that is uploaded when it is closed, but not where an error ends its block: it is not whole."""

    def __init__(self, send: Callable[[bytes], None]):
        super().__init__()
        self._send = send

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self.close()
        else:
            super().close()

    def close(self) -> None:
        if not self.closed:
            payload = self.getvalue()
            super().close()
            self._send(payload)


class _Passing(Exception):
    """A status that passes."""


def _time_limit(length: int) -> aiohttp.ClientTimeout:
    wait = retries.answer_limit()
    total = wait + length / _SLOWEST if length else None  # a large answer is limited by its pauses alone
    return aiohttp.ClientTimeout(total=total, sock_connect=wait, sock_read=wait)


def _name(path: str, args: tuple[str, ...]) -> str:
    """`gs://bucket/key` of a request."""
    if args:
        return "gs://" + "/".join(args)
    parts = re.search(r"/b/([^/?]+)(?:/o(?:/([^?]+)|\?(?:.*&)?name=([^&]+))?)?", path)
    if parts is None:
        return path
    return "gs://" + "/".join(urllib.parse.unquote(part) for part in parts.groups() if part)
