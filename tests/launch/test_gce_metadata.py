"""Hosts of Compute Engine find their numbers in the metadata, whichever form it has."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import gce_metadata
from qwenvl_jax.runtime.errors import UserError

TPU_ENV = "ACCELERATOR_TYPE: 'v6e-16'\nTPU_WORKER_ID: '2'\nTOPOLOGY: '4x4'\n"


class Metadata(dict[str, str]):
    """Attributes of an instance, as the metadata server tells them."""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    attributes = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            flavoured = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(403 if not flavoured else 200 if name in attributes else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    yield attributes
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "endpoints", ["10.0.0.1,10.0.0.2,10.0.0.3", "a:8470:10.0.0.1, b:8470:10.0.0.2,c:8470:10.0.0.3"]
)
def test_a_worker_of_one_slice(metadata: Metadata, endpoints: str, tmp_path: Path) -> None:
    metadata |= {"worker-network-endpoints": endpoints, "tpu-env": TPU_ENV}
    assert gce_metadata.variables(0, 1, str(tmp_path)) == {
        "JAX_NUM_PROCESSES": "3",
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8482",
        "JAX_PROCESS_ID": "2",
    }
    metadata["agent-worker-number"] = "1"
    assert gce_metadata.variables(0, 1, str(tmp_path))["JAX_PROCESS_ID"] == "1"


def test_a_single_host_needs_no_coordinator(metadata: Metadata, tmp_path: Path) -> None:
    assert gce_metadata.variables(0, 1, str(tmp_path)) == {"JAX_NUM_PROCESSES": "1"}


def test_slices_meet_at_the_address_that_the_first_host_leaves(metadata: Metadata, tmp_path: Path) -> None:
    metadata |= {"worker-network-endpoints": "10.0.0.1,10.0.0.2", "agent-worker-number": "0"}
    first = gce_metadata.variables(0, 2, str(tmp_path))
    assert first["JAX_PROCESS_ID"] == "0"
    metadata |= {"worker-network-endpoints": "10.9.0.1,10.9.0.2", "agent-worker-number": "1"}
    assert gce_metadata.variables(1, 2, str(tmp_path)) == {
        "JAX_NUM_PROCESSES": "4",
        "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8482",
        "JAX_PROCESS_ID": "3",
        "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }


def test_a_first_slice_that_never_comes(metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gce_metadata, "MEETING_S", 0.1)
    monkeypatch.setattr(gce_metadata, "POLL_S", 0.01)
    metadata |= {"worker-network-endpoints": "10.9.0.1", "agent-worker-number": "0"}
    with pytest.raises(UserError, match="the first slice has not left its address"):
        gce_metadata.variables(1, 2, str(tmp_path))


def test_metadata_that_contradict_themselves(metadata: Metadata, tmp_path: Path) -> None:
    metadata |= {"worker-network-endpoints": "10.0.0.1", "agent-worker-number": "3"}
    with pytest.raises(UserError, match="worker '3' of 1"):
        gce_metadata.variables(0, 1, str(tmp_path))


def test_no_metadata_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:9")
    with pytest.raises(UserError, match="the metadata server cannot be reached"):
        gce_metadata.variables(0, 1, str(tmp_path))


@given(workers=st.integers(1, 8), slices=st.integers(1, 4))
def test_every_process_has_a_number_of_its_own(workers: int, slices: int) -> None:
    made = [gce_metadata.members(w, workers, s, slices, "10.0.0.1") for s in range(slices) for w in range(workers)]
    numbers = [int(values.get("JAX_PROCESS_ID", 0)) for values in made]
    assert numbers == list(range(workers * slices))
    assert {values["JAX_NUM_PROCESSES"] for values in made} == {str(workers * slices)}
