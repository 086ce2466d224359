r"""GRIT, the grounded captions of Kosmos-2: phrases of a web caption with boxes (paper, A.3 and Table 3).

Source: Peng et al. 2023. Licence MS-PL; the pictures belong to their owners.
Home page: https://huggingface.co/datasets/zzliang/GRIT

The publisher gives tables `grit-20m/coyo_0_snappy.parquet` with the columns `url`, `caption`, `width`, `height`,
`clip_similarity_vitb32`, `clip_similarity_vitl14`, and two lists with seven numbers per phrase and box:

    noun_chunks   [[start, end, x1, y1, x2, y2, score], ..]    noun phrases of the caption
    ref_exps      the same                                     noun phrases with their modifiers

`start` and `end` are offsets in the caption in Unicode characters, the corners are shares of the picture's width and
height, and `score` is the confidence of the detector. A phrase with several boxes has an entry per box, and the noun of
a referring expression is within it, with the same box.

The pictures are downloaded with img2dataset, in any of its formats (see the module `img2dataset`):

    img2dataset --url_list grit-20m --input_format parquet --caption_col caption --output_format webdataset \
        --save_additional_columns '["id","noun_chunks","ref_exps","clip_similarity_vitb32","clip_similarity_vitl14"]'

A pair has one region per entry of both lists, with its box in pixels of the downloaded picture. `clean.grounding`
decides which of them stay in the caption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.corpora import img2dataset, parquet
from data_pipelines.corpora.annotations import numbers_of
from data_pipelines.corpora.rows import BadRow, list_at
from data_pipelines.pair import RawPair, Region

_LISTS = ("noun_chunks", "ref_exps")
SCORES = ("clip_similarity_vitb32", "clip_similarity_vitl14")


def _with_regions(pair: RawPair, facts: Mapping[str, Any]) -> RawPair:
    """The pair with the regions of both lists."""
    width, height = pair.pictures[0].width, pair.pictures[0].height
    if not width or not height:
        raise BadRow("picture without a size", pair.id)
    text = pair.texts[0]
    entries = [entry for key in _LISTS for entry in list_at(facts, key)]
    if not entries:
        raise BadRow("no regions", pair.id)
    return dataclasses.replace(pair, regions=tuple(_region(entry, text, width, height) for entry in entries))


def _region(entry: object, text: str, width: int, height: int) -> Region:
    start, end, x1, y1, x2, y2, score = numbers_of(entry, 7, "a phrase")
    if not (start.is_integer() and end.is_integer() and abs(start) < 1 << 31 and abs(end) < 1 << 31):
        raise BadRow("malformed box", f"the offsets {start}, {end}")
    first, last = int(start), int(end)
    if first < 0:
        last = max(last, 0)  # -1, -1 would mean that the phrase does not come from the caption
    box = (x1 * width, y1 * height, x2 * width, y2 * height)
    return Region(text[max(first, 0) : max(last, 0)], (box,), first, last, score)


LAYOUT = img2dataset.layout(*SCORES, columns=dict.fromkeys(_LISTS, parquet.NUMBER_LISTS), complete=_with_regions)
