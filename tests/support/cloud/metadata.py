"""The stand-in for the metadata server of every host: the address that was called says which host asks."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PREFIX = "/computeMetadata/v1/"


def answer(host: dict[str, Any], path: str) -> str | None:
    """What the metadata server of a host says at a path; None if it knows nothing there."""
    environment = {
        "ACCELERATOR_TYPE": host["accelerator_type"],
        "WORKER_ID": str(host["worker"]),
        "TPU_WORKER_ID": str(host["worker"]),
        "ZONE": host["mark"].split("/")[1],
        "NODE_ID": host["mark"].split("/")[2],
        "CONSUMER_PROJECT_ID": "a-project",
    }
    if host["slices"] > 1:
        environment |= {
            "MEGASCALE_NUM_SLICES": str(host["slices"]),
            "MEGASCALE_SLICE_ID": str(host["slice"]),
            "MEGASCALE_COORDINATOR_ADDRESS": f"{host['first']}:8080",
        }
    known = {
        "instance/attributes/agent-worker-number": str(host["worker"]),
        "instance/attributes/worker-network-endpoints": host["endpoints"],
        "instance/attributes/accelerator-type": host["accelerator_type"],
        "instance/attributes/tpu-env": "\n".join(f"{name}: '{value}'" for name, value in environment.items()),
        "instance/attributes/instance-id": host["mark"].split("/")[2],
        "instance/maintenance-event": host["notice"],
        "instance/preempted": str(host.get("preempted", "FALSE")),
        "instance/name": host["mark"].split("/")[2],
        "instance/zone": f"projects/1/zones/{host['mark'].split('/')[1]}",
        "project/project-id": "a-project",
    }
    return known.get(path.removeprefix(_PREFIX).partition("?")[0])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serves the metadata of all hosts of the cloud in `folder`; gives the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = self.connection.getsockname()[0]
            state = json.loads((folder / "state.json").read_text())
            host = next((one for one in state["hosts"].values() if one["address"] == address), None)
            text = answer(host, self.path) if host else None
            allowed = self.headers["Metadata-Flavor"] == "Google"
            body = (text if text is not None and allowed else "not found").encode()
            self.send_response(403 if not allowed else 404 if text is None else 200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    class Server(http.server.ThreadingHTTPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            """Answers processes of this machine only."""
            return str(client_address[0]).startswith("127.")

    server = Server(("0.0.0.0", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
