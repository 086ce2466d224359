"""Fixtures that tests of this folder share."""

from __future__ import annotations

from tests.support.cloud.fixtures import cloud

__all__ = ["cloud"]
