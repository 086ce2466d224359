"""The tiny model of the tests of evaluation."""

from tests.evaluation.conftest import checkpoint, config, loaded, params, tokenizer

__all__ = ["checkpoint", "config", "loaded", "params", "tokenizer"]
