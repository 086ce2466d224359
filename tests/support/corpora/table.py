"""The writer of a small corpus for every entry of `data_pipelines.corpora.table`, with all its splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.corpora import web

# (folder) -> writes the corpus into it, the same bytes every time.
FIXTURES: dict[str, Callable[[Path], None]] = {
    "coyo_700m": web.write_coyo_700m,
    "datacomp": web.write_datacomp,
    "laion_coco": web.write_laion_coco,
    "laion_en": web.write_laion_en,
    "laion_zh": web.write_laion_zh,
}
