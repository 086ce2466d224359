"""An object store whose shards are computed: a folder of hundreds of thousands of them, for tests and benchmarks.

    python -m tests.support.many_objects --files=DIR --folder=laion --strangers=2000000 --latency=0.05

Under `gs://many/FOLDER` are the files of a folder on a disk and the shards that its `manifest.json` lists, whose bytes
nobody may ask for, and as many strangers, objects that the manifest does not list. The answers are those of the JSON
API of Cloud Storage. `GET /_requests` tells how many requests there were of each kind. Benchmarks start it by `serve`.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import contextlib
import json
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.server_process import serving

BUCKET = "many"
_OBJECT = re.compile(r"(/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?")
# What the store says of each object if it is not asked for some fields alone.
_FURTHER = {
    "kind": "storage#object",
    "storageClass": "STANDARD",
    "contentType": "application/octet-stream",
    "generation": "1764000000000000",
    "metageneration": "1",
    "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==",
    "crc32c": "AAAAAA==",
    "etag": "CAE=",
    "timeCreated": "2026-11-25T00:00:00.000000Z",
    "updated": "2026-11-25T00:00:00.000000Z",
    "timeStorageClassUpdated": "2026-11-25T00:00:00.000000Z",
}


class Store(ThreadingHTTPServer):
    """See the top of this file."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(("127.0.0.1", arguments.port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.latency = arguments.latency
        self.requests = collections.Counter[str]()
        self.lock = threading.Lock()
        files = {path.name: path.read_bytes() for path in arguments.files.iterdir() if path.is_file()}
        self.contents = {f"{arguments.folder}/{name}": payload for name, payload in files.items()}
        self.sizes = {key: len(payload) for key, payload in self.contents.items()}
        for summary in json.loads(files["manifest.json"])["splits"].values():
            for shard in summary["shards"]:
                self.sizes[f"{arguments.folder}/{shard['file']}"] = shard["bytes"]
        for number in range(arguments.strangers):
            self.sizes[f"{arguments.folder}/stranger-{number:09d}"] = 1
        self.keys = sorted(self.sizes)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""

    def page(self, asked: dict[str, str]) -> dict[str, Any]:
        """A page of a listing. There are no folders in the folder, so a delimiter changes nothing."""
        prefix = asked.get("prefix", "")
        start = max(prefix, asked.get("startOffset", ""), asked.get("pageToken", ""))
        end = asked.get("endOffset", "\U0010ffff")
        first = bisect.bisect_left(self.keys, start)
        few = int(asked.get("maxResults", 1000))
        keys = [key for key in self.keys[first : first + few + 1] if key.startswith(prefix) and key < end]
        further = {} if "fields" in asked else _FURTHER
        items = [{"name": key, "size": str(self.sizes[key]), **further} for key in keys[:few]]
        return {"items": items, **({"nextPageToken": keys[few]} if len(keys) > few else {})}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_GET(self) -> None:
        store = self.server
        path, _, query = self.path.partition("?")
        if path == "/_requests":
            self._answer(200, json.dumps(store.requests).encode())
            return
        time.sleep(store.latency)
        asked = dict(urllib.parse.parse_qsl(query))
        match = _OBJECT.fullmatch(path)
        key = urllib.parse.unquote(match[3]) if match and match[3] else ""
        if match is None or match[2] != BUCKET:
            self._count("unknown")
            self._answer(404, b"{}")
        elif not key:
            self._count("list")
            self._answer(200, json.dumps(store.page(asked)).encode())
        elif asked.get("alt") == "media":
            self._count("read")
            self._read(store.contents.get(key))
        else:
            self._count("describe")
            size = store.sizes.get(key)
            about = {"name": key, "bucket": BUCKET, "size": str(size), **_FURTHER}
            self._answer(404 if size is None else 200, json.dumps(about).encode())

    def _read(self, payload: bytes | None) -> None:
        if payload is None:
            self._answer(404, b"{}")
            return
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._answer(200, payload)
            return
        start = int(span[1]) if span[1] else max(0, len(payload) - int(span[2]))
        part = payload[start : int(span[2]) + 1 if span[1] and span[2] else None]
        self._answer(206, part, ("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(payload)}"))

    def _count(self, kind: str) -> None:
        with self.server.lock:
            self.server.requests[kind] += 1

    def _answer(self, status: int, contents: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(contents)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


def serve(files: Path, **options: object) -> contextlib.AbstractContextManager[str]:
    """Runs a store as a separate process; gives its URL. The options are those of the command line."""
    return serving("tests.support.many_objects", files=files, **options)


def requests(url: str) -> dict[str, int]:
    """How many requests of each kind a store has answered."""
    with urllib.request.urlopen(f"{url}/_requests") as answer:
        return json.loads(answer.read())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; prints `listening on URL` and serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="folder with manifest.json and others")
    parser.add_argument("--folder", default="laion", help="in the bucket")
    parser.add_argument("--strangers", type=int, default=0, help="objects that are not in the manifest")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    store = Store(parser.parse_args(argv))
    print(f"listening on {store.url}", flush=True)
    store.serve_forever()


if __name__ == "__main__":
    main()
