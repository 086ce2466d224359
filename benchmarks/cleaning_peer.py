"""The other side of cleaning.py: data-juicer's operators, in an environment of its own.

    python benchmarks/cleaning_peer.py FOLDER RESULT

Reads the Parquet shards of FOLDER that cleaning.py has written, and writes their pictures as files and their rows as
JSON lines, which is data-juicer's form. Then it runs a recipe on them in one process, and writes RESULT, as JSON: the
seconds, reading and export included, and the number of rows that are left.

The recipe has an operator for each rule of A.1 that data-juicer can do without a download. It has none for the
language, whose model it would have to fetch; ours also decodes every picture, and hashes it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a build without its compiled operators; importing it needs their signatures, not their code
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor

RECIPE = """
np: 1
use_cache: false
open_tracer: false
text_keys: text
image_key: images
process:
  - fix_unicode_mapper:
  - clean_html_mapper:
  - whitespace_normalization_mapper:
  - special_characters_filter: {max_ratio: 0.25}
  - alphanumeric_filter: {min_ratio: 0.6}
  - word_repetition_filter: {rep_len: 3, max_ratio: 0.5}
  - words_num_filter: {min_num: 3, max_num: 400}
  - text_length_filter: {min_len: 5, max_len: 2000}
  - image_shape_filter: {min_width: 64, min_height: 64}
  - image_aspect_ratio_filter: {min_ratio: 0.333, max_ratio: 3.0}
  - document_deduplicator: {lowercase: false}
"""


def write_rows(folder: Path, made: Path) -> Path:
    """Pictures as files, rows as JSON lines; the path of the lines."""
    pictures = made / "pictures"
    pictures.mkdir()
    lines = made / "rows.jsonl"
    with lines.open("w") as stream:
        for shard in sorted(folder.glob("*.parquet")):
            for row in pq.read_table(shard, columns=["key", "jpg", "caption"]).to_pylist():
                path = pictures / f"{row['key']}.jpg"
                path.write_bytes(row["jpg"])
                stream.write(json.dumps({"text": row["caption"], "images": [str(path)]}) + "\n")
    return lines


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        lines = write_rows(Path(sys.argv[1]), made)
        config = made / "recipe.yaml"
        output = made / "output" / "kept.jsonl"
        config.write_text(f"dataset_path: {lines}\nexport_path: {output}\n{RECIPE}")
        started = time.perf_counter()
        DefaultExecutor(init_configs(args=["--config", str(config)])).run()
        seconds = time.perf_counter() - started
        with output.open() as stream:
            kept = sum(1 for _ in stream)
        Path(sys.argv[2]).write_text(json.dumps({"seconds": round(seconds, 1), "kept": kept}))


if __name__ == "__main__":
    main()
