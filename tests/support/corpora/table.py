"""The writer of a small corpus for every entry of `data_pipelines.corpora.table`, with all its splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.corpora import captions, rendered, texts, web

# (folder) -> writes the corpus into it, the same bytes every time. Sorted by name.
FIXTURES: dict[str, Callable[[Path], None]] = {
    "cc12m": captions.write_cc12m,
    "cc3m": captions.write_cc3m,
    "coco_captions": captions.write_coco_captions,
    "coyo_700m": web.write_coyo_700m,
    "datacomp": web.write_datacomp,
    "flickr30k": captions.write_flickr30k,
    "laion_coco": web.write_laion_coco,
    "laion_en": web.write_laion_en,
    "laion_zh": web.write_laion_zh,
    "llava": texts.write_llava,
    "nocaps": captions.write_nocaps,
    "qwen_vl_dialogues": texts.write_qwen_vl_dialogues,
    "sbu": captions.write_sbu,
    "synthdog_en": texts.write_synthdog_en,
    "synthdog_zh": texts.write_synthdog_zh,
    "synthetic_pages": rendered.write_synthetic_pages,
    "text": texts.write_text,
    "textcaps": captions.write_textcaps,
}
