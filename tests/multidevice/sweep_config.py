"""The config of an evaluation from a JSON file: --config=tests/multidevice/sweep_config.py:path=FILE."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from configs.arguments import named_arguments


def _tuples(value: Any) -> Any:
    """Lists of objects as tuples, which a config holds."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


@named_arguments
def get_config(path: str = "") -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(_tuples(json.loads(Path(path).read_text())))
