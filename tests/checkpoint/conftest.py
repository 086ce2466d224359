"""Fixtures of the tests of checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from qwenvl_jax.models import qwen_vl
from tests.support import tiny_run


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return qwen_vl.init_params(tiny_run.make_config().model, jax.random.key(7))
