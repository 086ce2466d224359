"""The vocabulary of the released model."""

from __future__ import annotations

import pytest

from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def qwen() -> Tokenizer:
    return load_tokenizer(TokenizerConfig(kind="qwen", path=""))
