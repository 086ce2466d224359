"""The stand-in for the metadata server answers every host with its own role."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request

import pytest

from launch import gce_metadata
from tests.support.cloud.pretended import PretendedCloud


def ask(cloud: PretendedCloud, mark: str, path: str, flavor: str = "Google") -> str:
    address = cloud.hosts()[mark]["address"]
    request = urllib.request.Request(
        f"http://{address}:{cloud.metadata_port}/computeMetadata/v1/{path}", headers={"Metadata-Flavor": flavor}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def test_hosts_learn_their_roles_and_notices(cloud: PretendedCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.set(seconds={"wait": 0, "provision": 0})
    create = ("gcloud", "compute", "tpus", "queued-resources", "create", "q", "--zone=us-east5-a", "--node-count=2")
    flags = ("--node-prefix=n", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5")
    subprocess.run([*create, *flags], env=cloud.environment, check=True)
    cloud.resources()
    for of_slice in range(2):
        for worker in range(2):
            mark = f"node/us-east5-a/n-{of_slice}/{worker}"
            environment = gce_metadata.tpu_environment(ask(cloud, mark, "instance/attributes/tpu-env"))
            assert environment["WORKER_ID"] == str(worker)
            assert (environment["MEGASCALE_SLICE_ID"], environment["MEGASCALE_NUM_SLICES"]) == (str(of_slice), "2")
            monkeypatch.setenv("GCE_METADATA_IP", f"{cloud.hosts()[mark]['address']}:{cloud.metadata_port}")
            number, addresses = gce_metadata.worker_and_addresses()
            assert number == worker and addresses[worker] == cloud.hosts()[mark]["address"]
    mark = "node/us-east5-a/n-0/0"
    assert ask(cloud, mark, "instance/maintenance-event") == "NONE"
    cloud.announce_maintenance(mark)
    assert ask(cloud, mark, "instance/maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(cloud, mark, "instance/name", flavor="Other")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(cloud, mark, "instance/attributes/unknown")
