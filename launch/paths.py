"""The table of paths. A new one is a module with a `PATH`, and its line here."""

from __future__ import annotations

from launch import gce, queued_resource, tpu_vm
from launch.path import LaunchPath

PATHS: dict[str, LaunchPath] = {path.name: path for path in (tpu_vm.PATH, queued_resource.PATH, gce.PATH)}
