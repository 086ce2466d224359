"""The client of Google Cloud Storage: gcsfs, made patient. Only `runtime.storage` imports it.

gcsfs repeats a failed request for about half a minute, waits for an answer without any limit, takes a listing of
minutes ago for the present one and makes a bucket that is missing. `Gcs` repeats for `retries.patience()` seconds,
gives every request a time limit, compares lengths and checksums, remembers no listing and makes no bucket. It is
registered with fsspec, so etils, Orbax and TFDS go through it too.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import itertools
import json as json_module
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import aiohttp
import google.auth.exceptions
import google_crc32c
import requests.exceptions
from fsspec.asyn import sync
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, validate_response

from qwenvl_jax.runtime import retries
from qwenvl_jax.runtime.errors import StorageError
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
_UPLOAD_PART = 32 << 20  # bytes sent in one request; larger objects are sent in parts
_SLOWEST = 256 << 10  # bytes a second that an upload is given time for
_DELETED_AT_ONCE = 32
_LISTED_AT_ONCE = 1000


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
        """One request, repeated while its failure is one that passes.

        Args:
          expect: a function of (status, headers, contents) that raises `NotWhole` if the answer is not whole.

        Raises:
          FileNotFoundError: if the server says that there is no such object or bucket.
          StorageError: if it refuses the request, or after `retries.patience()` seconds.
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
                    f"{where} needs credentials ({_short(error)}); run gcloud auth application-default login or set "
                    "GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            except (HttpError, OSError, ValueError) as error:
                if isinstance(error, HttpError) and error.code == 416:
                    raise
                if isinstance(error, FileExistsError):  # a precondition of the caller's
                    raise
                raise StorageError(
                    f"{where} cannot be used ({_short(error)}); correct the path or ask for the permission"
                ) from error

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


class Store:
    """What `storage` asks of an object store, in bytes and names; paths are `gs://bucket/key`."""

    def __init__(self) -> None:
        import fsspec

        # The very instance that etils uses, with its arguments.
        self._fs: Gcs = fsspec.filesystem("gcs", finalize_on_close=True)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        status, headers, _, contents = sync(self._fs.loop, self._fs._request, *args, **kwargs)
        return status, headers, contents

    def facts(self, path: str) -> dict[str, Any] | None:
        """Size, crc32c and so on of an object, None if there is none."""
        bucket, key = split(path)
        if not key:
            return None
        try:
            return _json(self._call("GET", "b/{}/o/{}", bucket, key)[2])
        except FileNotFoundError:
            return None

    def read(self, path: str, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of an object, or `size` of them from `start`; fewer only where the object ends.

        Raises:
          FileNotFoundError: if there is no such object.
        """
        bucket, key = split(path)
        if size == 0:
            return b""
        headers = {"Accept-Encoding": "identity"}
        if start or size is not None:
            headers["Range"] = f"bytes={start}-" + ("" if size is None else str(start + size - 1))

        def whole(status: int, answered: Any, contents: bytes) -> None:
            _check_length(status, answered, contents, start, size)

        url = f"{self._fs._location}/download/storage/v1/b/{{}}/o/{{}}"
        try:
            return self._call("GET", url, bucket, key, headers=headers, alt="media", expect=whole)[2]
        except HttpError as error:
            if error.code == 416:  # starts at or behind the end
                return b""
            raise

    def write(self, path: str, payload: bytes | memoryview) -> None:
        """Writes one object, whole or not at all, and compares size and checksum with what the server then holds."""
        self._write(path, len(payload), lambda start, size: bytes(payload[start : start + size]))

    def write_file(self, path: str, source: os.PathLike[str]) -> None:
        """As `write`, from a local file."""
        with open(source, "rb") as file:

            def part(start: int, size: int) -> bytes:
                file.seek(start)
                return file.read(size)

            self._write(path, os.fstat(file.fileno()).st_size, part)

    def _write(self, path: str, size: int, part: Callable[[int, int], bytes]) -> None:
        bucket, key = split(path)
        checksum = crc32c(part(start, _UPLOAD_PART) for start in range(0, size, _UPLOAD_PART))

        def stored(status: int, headers: Any, contents: bytes) -> None:
            facts = _json(contents)
            if (int(facts.get("size", -1)), facts.get("crc32c")) != (size, checksum):
                raise NotWhole("what was stored differs from what was sent")

        if size <= _UPLOAD_PART:
            self._upload(bucket, data=part(0, size), uploadType="media", name=key, expect=stored)
        else:
            retries.retried(lambda: self._write_in_parts(bucket, key, size, part, stored), path)

    def _write_in_parts(self, bucket: str, key: str, size: int, part: Callable[[int, int], bytes], stored: Any) -> None:
        _, answered, _ = self._upload(bucket, uploadType="resumable", name=key, json={})
        location, at = answered["Location"], 0
        while at < size:
            sent = part(at, _UPLOAD_PART)
            end = at + len(sent)
            span = {"Content-Range": f"bytes {at}-{end - 1}/{size}"}
            status, answered, contents = self._call("PUT", location, headers=span, data=sent)
            if status == 308:  # not the last part; the server says how much of it it has kept
                end = int(answered["Range"].rpartition("-")[2]) + 1 if "Range" in answered else at
                if end == at:
                    raise NotWhole("the server keeps nothing of what it is sent")
            at = end
        stored(status, answered, contents)

    def _upload(self, bucket: str, **kwargs: Any) -> Any:
        url = f"{self._fs._location}/upload/storage/v1/b/{{}}/o"
        try:
            return self._call("POST", url, bucket, **kwargs)
        except FileNotFoundError:
            raise StorageError(
                f"the bucket gs://{bucket} does not exist; make it (gcloud storage buckets create gs://{bucket}) or "
                "correct the path"
            ) from None

    @staticmethod
    def described(facts: Mapping[str, Any]) -> tuple[int, int]:
        """Size and seconds of the last change, from what the server says of an object."""
        return int(facts["size"]), int(datetime.datetime.fromisoformat(facts["updated"]).timestamp())

    def listed(
        self, folder: str, *, deep: bool = False, at_most: int | None = None
    ) -> dict[str, tuple[int | None, int]]:
        """What lies in a folder, by name relative to it: size and seconds of the last change; (None, 0) for a folder.

        Args:
          deep: all objects below it instead, and no folders.
          at_most: stop when so many are known.
        """
        bucket, key = split(folder)
        prefix = f"{key.rstrip('/')}/" if key else ""
        found: dict[str, tuple[int | None, int]] = {}
        token = None
        while True:
            few = min(_LISTED_AT_ONCE, at_most) if at_most else _LISTED_AT_ONCE
            page = _json(
                self._call(
                    "GET",
                    "b/{}/o",
                    bucket,
                    prefix=prefix or None,
                    delimiter=None if deep else "/",
                    maxResults=few,
                    pageToken=token,
                )[2]
            )
            for item in page.get("items", ()):
                if name := item["name"][len(prefix) :]:  # an empty one marks the folder itself
                    found[name] = self.described(item)
            for item in page.get("prefixes", ()):
                found.setdefault(item[len(prefix) :].rstrip("/"), (None, 0))
            token = page.get("nextPageToken")
            if not token or (at_most and len(found) >= at_most):
                return found

    def rename(self, path: str, target: str) -> None:
        """Copies an object on the server, compares the copy and removes the first."""
        bucket, key = split(path)
        facts = self.facts(path)
        if facts is None:
            raise FileNotFoundError(2, "No such object", path)
        token = None
        while True:
            told = _json(
                self._call(
                    "POST", "b/{}/o/{}/rewriteTo/b/{}/o/{}", bucket, key, *split(target), rewriteToken=token, json={}
                )[2]
            )
            token = told.get("rewriteToken")
            if told.get("done", True):
                break
        copied = self.facts(target) or {}
        if any(copied.get(name) != facts.get(name) for name in ("size", "crc32c")):
            raise StorageError(f"{target} is not what {path} is after the server copied it; run the same command again")
        self._delete([path])

    def remove(self, path: str) -> None:
        """Removes an object and everything below a folder of that name; what is missing is no error."""
        below = list(self.listed(path, deep=True))
        # What says that a folder is whole goes first, so that one half removed is never taken for whole.
        for told in (True, False):
            self._delete([f"{path}/{name}" for name in below if name.endswith(".json") is told])
        if split(path)[1]:
            self._delete([path])

    def _delete(self, paths: list[str]) -> None:
        for error in sync(self._fs.loop, self._fs._delete_files, [path.removeprefix("gs://") for path in paths], 0):
            if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                raise error


class _Passing(Exception):
    """A status that passes."""


def split(path: str) -> tuple[str, str]:
    """Bucket and key of `gs://bucket/key`."""
    bucket, _, key = path.removeprefix("gs://").partition("/")
    return bucket, key


def crc32c(parts: Iterable[bytes]) -> str:
    """The CRC-32C of bytes as the server writes it."""
    checksum = google_crc32c.Checksum()
    for part in parts:
        checksum.update(part)
    return base64.b64encode(checksum.digest()).decode()


def _time_limit(length: int) -> aiohttp.ClientTimeout:
    wait = retries.answer_limit()
    total = wait + length / _SLOWEST if length else None  # a large answer is limited by its pauses alone
    return aiohttp.ClientTimeout(total=total, sock_connect=wait, sock_read=wait)


def _check_length(status: int, headers: Any, contents: bytes, start: int, size: int | None) -> None:
    """Raises `NotWhole` if an answer is shorter than what was asked for, or not what the object holds."""
    if headers.get("Content-Encoding"):
        return
    if status == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if total.isdigit():
            end = int(total) if size is None else min(start + size, int(total))
            if len(contents) != end - start:
                raise NotWhole(f"{len(contents)} bytes instead of {end - start}")
    elif start == 0 and size is None:
        sums = re.search(r"crc32c=([^,\s]+)", ",".join(headers.getall("X-Goog-Hash", ())))
        if sums and sums[1] != crc32c([contents]):
            raise NotWhole("the checksum of what was read differs")
    else:
        raise NotWhole("the server did not read the range that was asked for")


def _json(contents: bytes) -> dict[str, Any]:
    return json_module.loads(contents)


def _name(path: str, args: tuple[str, ...]) -> str:
    """`gs://bucket/key` of a request."""
    if args:
        return "gs://" + "/".join(args)
    found = re.search(r"/b/([^/?]+)(?:/o(?:/([^?]+)|\?(?:.*&)?name=([^&]+))?)?", path)
    if found is None:
        return path
    return "gs://" + "/".join(urllib.parse.unquote(part) for part in found.groups() if part)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
