"""Objects of a bucket, as `storage` needs them: single requests through the patient client of `gcs`."""

from __future__ import annotations

import bisect
import datetime
import email.utils
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fsspec
from fsspec.asyn import sync
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from qwenvl_jax.runtime import retries
from qwenvl_jax.runtime.crc32c import crc32c
from qwenvl_jax.runtime.errors import StorageError, StorageOutage
from qwenvl_jax.runtime.retries import NotWhole

_UPLOAD_PART = 32 << 20  # bytes sent in one request; larger objects are sent in parts
_LISTED_AT_ONCE = 1000


class Store:
    """An object store in bytes and names; paths are `gs://bucket/key`."""

    def __init__(self, fs: GCSFileSystem | None = None) -> None:
        # By default the instance that etils uses, so with the same arguments: `storage` registers `gcs.Gcs` for it.
        self._fs = fs or fsspec.filesystem("gcs", finalize_on_close=True)

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
        """The bytes of an object, or `size` of them from `start`; fewer only at the end of the object.

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

    def read_with_age(self, path: str) -> tuple[str, float, bytes] | None:
        """Generation, age in seconds by the clock of the server, and bytes of an object; None if there is none."""
        bucket, key = split(path)
        while True:
            try:
                _, headers, contents = self._call("GET", "b/{}/o/{}", bucket, key)
                facts = _json(contents)
                return facts["generation"], _age(facts, headers), self._read_generation(path, facts["generation"])
            except FileNotFoundError:
                if self.facts(path) is None:  # otherwise it was replaced between the two requests
                    return None

    def _read_generation(self, path: str, generation: str) -> bytes:
        bucket, key = split(path)
        url = f"{self._fs._location}/download/storage/v1/b/{{}}/o/{{}}"
        return self._call("GET", url, bucket, key, alt="media", generation=generation)[2]

    def write_if(self, path: str, payload: bytes, generation: str) -> str | None:
        """Writes a small object if it still has a generation, "0" for none; its new one, or None if it has another."""
        bucket, key = split(path)
        boundary = uuid.uuid4().hex
        parts = (("application/json", json.dumps({"name": key}).encode()), ("application/octet-stream", payload))
        body = b"".join(
            f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for kind, part in parts
        )
        try:
            answer = self._upload(
                bucket,
                data=body + f"--{boundary}--\r\n".encode(),
                headers={"Content-Type": f"multipart/related; boundary={boundary}"},
                uploadType="multipart",
                ifGenerationMatch=generation,
            )
        except FileExistsError:  # what gcsfs makes of a precondition that does not hold
            return None
        return _json(answer[2])["generation"]

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
            try:
                status, answered, contents = self._call("PUT", location, headers=span, data=sent)
            except FileNotFoundError:  # the session; the last part may have arrived although its answer did not
                stored(200, {}, json.dumps(self.facts(f"gs://{bucket}/{key}") or {}).encode())
                return
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
    def described(facts: Mapping[str, Any]) -> tuple[int, int, str]:
        """Size, time of the last change in nanoseconds, and checksum, from what the server says of an object."""
        changed = datetime.datetime.fromisoformat(facts["updated"]) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        checksum = f"crc32c:{facts['crc32c']}" if facts.get("crc32c") else ""
        return int(facts["size"]), changed // datetime.timedelta(microseconds=1) * 1000, checksum

    def listed(
        self, folder: str, *, deep: bool = False, at_most: int | None = None
    ) -> dict[str, tuple[int | None, int, str]]:
        """The entries of a folder, by name relative to it, as `described`; (None, 0, "") for a folder.

        Args:
          deep: all objects below it instead, and no folders.
          at_most: stop when so many are known.
        """
        bucket, key = split(folder)
        prefix = f"{key.rstrip('/')}/" if key else ""
        entries: dict[str, tuple[int | None, int, str]] = {}
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
                    entries[name] = self.described(item)
            for item in page.get("prefixes", ()):
                entries.setdefault(item[len(prefix) :].rstrip("/"), (None, 0, ""))
            token = page.get("nextPageToken")
            if not token or (at_most and len(entries) >= at_most):
                return entries

    def sizes_of(self, folder: str, names: Sequence[str]) -> dict[str, int]:
        """The sizes in bytes of those of the named objects of a folder that exist; other objects cost nothing.

        The listing starts at the first name, and after every page at the next name that has not been reached.

        Args:
          folder: `gs://bucket/key`.
          names: sorted, without `/`.
        """
        bucket, key = split(folder)
        prefix = f"{key.rstrip('/')}/" if key else ""
        wanted = [name for name in names if _can_be_object(name)]
        sizes: dict[str, int] = {}
        position = 0
        token = None
        while position < len(wanted):
            page = _json(
                self._call(
                    "GET",
                    "b/{}/o",
                    bucket,
                    prefix=prefix or None,
                    delimiter="/",
                    startOffset=prefix + wanted[position],
                    maxResults=_LISTED_AT_ONCE,
                    pageToken=token,
                    fields="items(name,size),nextPageToken",  # a fifth of the bytes
                )[2]
            )
            listed = {item["name"][len(prefix) :]: int(item["size"]) for item in page.get("items", ())}
            sizes |= listed
            token = page.get("nextPageToken")
            if not token:
                break
            # A page without objects may be followed by others; only then the token is needed.
            if listed:
                position = bisect.bisect_right(wanted, max(listed))
                token = None
        return {name: sizes[name] for name in wanted if name in sizes}

    def rename(self, path: str, target: str) -> None:
        """Copies an object on the server, compares the copy and removes the first."""
        self.copy(path, target)
        self._delete([path])

    def copy(self, path: str, target: str) -> None:
        """Copies an object on the server and compares the copy."""
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
            raise StorageOutage(
                f"{target} is not what {path} is after the server copied it; run the same command again"
            )

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


def split(path: str) -> tuple[str, str]:
    """Bucket and key of `gs://bucket/key`."""
    bucket, _, key = path.removeprefix("gs://").partition("/")
    return bucket, key


def _age(facts: Mapping[str, Any], headers: Any) -> float:
    """Seconds between the last change of an object and the answer that described it, both by the server's clock."""
    answered = email.utils.parsedate_to_datetime(headers["Date"])
    return max(0.0, (answered - datetime.datetime.fromisoformat(facts["updated"])).total_seconds())


def _can_be_object(name: str) -> bool:
    """Whether a name is valid UTF-8 of at most 1024 bytes, as the names of objects are."""
    try:
        return 0 < len(name.encode()) <= 1024
    except UnicodeEncodeError:
        return False


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
    return json.loads(contents)
