"""The table of paths. A new one is a module with a `PATH`, and its line here."""

from __future__ import annotations

from launch import gce, gke, local, queued_resource, tpu_vm
from launch.path import LaunchPath

_ALL = (tpu_vm.PATH, queued_resource.PATH, gce.PATH, gke.PATH, local.PATH)
PATHS: dict[str, LaunchPath] = {path.name: path for path in _ALL}
