"""Large files are read piece by piece: ten times the rows need no more memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.corpora.tables import write_tar

ROOT = Path(__file__).parents[3]
MEBIBYTE = 1 << 20
READ = """
import resource, sys
from data_pipelines.corpora.table import CORPORA
rows = sum(1 for _ in CORPORA[sys.argv[1]].read(sys.argv[2]))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(name: str, folder: Path) -> tuple[int, int]:
    """Rows of a corpus, and the peak memory of a process that reads it, in bytes."""
    run = subprocess.run(
        [sys.executable, "-c", READ, name, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows, kibibytes = map(int, run.stdout.split())
    return rows, kibibytes << 10


def write_table(folder: Path, rows: int, picture_bytes: int) -> None:
    """A table of one row group with pictures of noise, which no compression makes smaller."""
    folder.mkdir()
    noise = np.random.default_rng(0).bytes(rows * picture_bytes)
    offsets = np.arange(rows + 1, dtype=np.int32) * picture_bytes
    pictures = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(noise)])
    columns = {
        "jpg": pictures,
        "txt": [f"caption {n}" for n in range(rows)],
        "key": [f"{n:09d}" for n in range(rows)],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 64, np.float32)), 64),
    }
    pyarrow.parquet.write_table(pa.table(columns), folder / "0.parquet", row_group_size=rows)


@pytest.mark.slow
def test_a_table_of_many_rows_in_one_group(tmp_path: Path) -> None:
    write_table(tmp_path / "small", 20_000, 1000)
    write_table(tmp_path / "large", 200_000, 1000)
    small_rows, small = peak("coyo_700m", tmp_path / "small")
    large_rows, large = peak("coyo_700m", tmp_path / "large")
    assert (small_rows, large_rows) == (20_000, 200_000)
    # The keys of a shard are kept: some 100 bytes each. The pictures alone are 200 MB.
    assert large - small < 60 * MEBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cc12m", "text", "synthdog_en"])
def test_a_list_of_many_lines(name: str, tmp_path: Path) -> None:
    peaks = []
    for rows in (20_000, 200_000):
        folder = tmp_path / str(rows)
        line, path = {
            "cc12m": (b"http://static.example.com/1.jpg\t" + b"caption " * 50, folder / "cc12m.tsv"),
            "text": (b'{"text": "' + b"words " * 70 + b'"}', folder / "a.jsonl"),
            "synthdog_en": (b'{"file_name": "' + b"a" * 400 + b'"}', folder / "train" / "metadata.jsonl"),
        }[name]
        (folder / "images").mkdir(parents=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((line + b"\n") * rows)
        count, memory = peak(name, folder)
        assert count == rows
        peaks.append(memory)
    assert peaks[1] - peaks[0] < 20 * MEBIBYTE


@pytest.mark.slow
def test_a_tar_of_many_samples(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).bytes(10_000)
    peaks = []
    for rows in (1_000, 10_000):
        members = (
            (f"{n:09d}.{suffix}", payload) for n in range(rows) for suffix, payload in (("jpg", picture), ("txt", b"a"))
        )
        write_tar(tmp_path / str(rows) / "0.tar", members)
        count, memory = peak("laion_en", tmp_path / str(rows))
        assert count == rows
        peaks.append(memory)
    assert peaks[1] - peaks[0] < 20 * MEBIBYTE
