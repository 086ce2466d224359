"""TensorBoard event files."""

from __future__ import annotations

import sys
from typing import Any

from etils import epath


def event_writer(folder: epath.PathLike, purge_step: int | None = None) -> Any:
    """A tensorboardX `SummaryWriter` into `folder`; events from `purge_step` on of earlier attempts are disowned.

    tensorboardX imports torch wherever it is installed, which costs seconds and hundreds of MB for nothing we use:
    it is told that there is none.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)
