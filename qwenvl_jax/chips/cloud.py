"""How Google Cloud calls each kind of chip: accelerator types, runtimes, machine types, labels of GKE, images.

Sources, as of November 2026:

  [types]    "TPU configurations" on the page of each chip (https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e,
             /tpu7x): machine types, topologies, and whether an accelerator type counts TensorCores or chips
  [runtimes] "TPU software versions" (https://docs.cloud.google.com/tpu/docs/runtimes)
  [gke]      "Plan TPUs in GKE" (https://docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
  [groups]   "Create Cloud TPU VMs with MIGs" (https://docs.cloud.google.com/tpu/docs/tpus-and-migs): v5p, v6e and TPU7x
             only; the Cloud TPU API is not supported on TPU7x and later
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class CloudNames:
    """The names of one kind of chip.

    Attributes:
      prefix: of its accelerator types, e.g. "v5litepod" in `v5litepod-256` [types].
      cores: what an accelerator type counts per chip: 2 if it counts TensorCores, 1 if it counts chips [types].
      api_type: the value of `--type` of the Cloud TPU API, which is used for a topology that no accelerator type names;
        empty if the API does not have the chip.
      runtime: the software version of the Cloud TPU API [runtimes]; empty if the API does not have the chip.
      machines: machine types by chips per virtual machine [types].
      gke_accelerator: value of the node label `cloud.google.com/gke-tpu-accelerator` [gke].
      image_family: the family of boot images in the project `ubuntu-os-accelerator-images` for Compute Engine [groups];
        empty if Compute Engine does not have the chip.
      smallest: the grid of the smallest slice of one whole virtual machine; a single chip is smaller if `machines` has
        one.
      largest: chips of the largest slice [types].
    """

    prefix: str
    cores: int
    api_type: str
    runtime: str
    machines: Mapping[int, str]
    gke_accelerator: str
    image_family: str
    smallest: tuple[int, ...]
    largest: int


CLOUD = {
    "v4": CloudNames(
        prefix="v4",
        cores=2,
        api_type="v4",
        runtime="tpu-ubuntu2204-base",
        machines={4: "ct4p-hightpu-4t"},
        gke_accelerator="tpu-v4-podslice",
        image_family="",
        smallest=(2, 2, 1),
        largest=4096,
    ),
    "v5e": CloudNames(
        prefix="v5litepod",
        cores=1,
        api_type="v5litepod",
        runtime="v2-alpha-tpuv5-lite",
        machines={1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        gke_accelerator="tpu-v5-lite-podslice",
        image_family="",
        smallest=(2, 2),
        largest=256,
    ),
    "v5p": CloudNames(
        prefix="v5p",
        cores=2,
        api_type="v5p",
        runtime="v2-alpha-tpuv5",
        machines={4: "ct5p-hightpu-4t"},
        gke_accelerator="tpu-v5p-slice",
        image_family="ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
        smallest=(2, 2, 1),
        largest=6144,
    ),
    "v6e": CloudNames(
        prefix="v6e",
        cores=1,
        api_type="v6e",
        runtime="v2-alpha-tpuv6e",
        machines={1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        gke_accelerator="tpu-v6e-slice",
        image_family="ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
        smallest=(2, 2),
        largest=256,
    ),
    "tpu7x": CloudNames(
        prefix="tpu7x",
        cores=2,
        api_type="",
        runtime="",
        machines={1: "tpu7x-standard-1t", 4: "tpu7x-standard-4t"},
        gke_accelerator="tpu7x",
        image_family="ubuntu-accel-2404-amd64-tpu-tpu7x",
        smallest=(2, 2, 1),
        largest=9216,
    ),
}
