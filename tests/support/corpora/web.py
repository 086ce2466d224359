"""Small web corpora as img2dataset leaves them, in its three formats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_file, write_parquet, write_tar

SHARD_ROWS = 4
Facts = dict[str, Any]

_ENGLISH = ("a red fox in the snow", "Blue mug &amp; saucer <b>SALE</b>", "Sunset over the bay 😀", "An old oak tree")
_CHINESE = ("雪地里的一只红狐狸", "蓝色的杯子和碟子", "海湾上的日落", "一棵老橡树")


def facts(number: int, caption: str, extra: Mapping[str, Any]) -> Facts:
    """The row of a table: every third download failed."""
    failed = number % 3 == 2
    return {
        "url": f"https://pictures.example/{number}.jpg",
        "caption": caption,
        **extra,
        "key": f"{number // SHARD_ROWS:05d}{number % SHARD_ROWS:04d}",
        "status": "failed_to_download" if failed else "success",
        "error_message": "HTTP Error 404: Not Found" if failed else None,
        "width": None if failed else WIDTH,
        "height": None if failed else HEIGHT,
        "original_width": None if failed else 10 * WIDTH,
        "original_height": None if failed else 10 * HEIGHT,
        "exif": None if failed else "{}",
        "sha256": None if failed else f"{number:064x}",
    }


def shards(rows: Sequence[Facts]) -> Iterator[tuple[str, list[tuple[int, Facts]]]]:
    """The rows of every shard with their numbers, and its name."""
    numbered = list(enumerate(rows))
    for start in range(0, len(rows), SHARD_ROWS):
        yield f"{start // SHARD_ROWS:05d}", numbered[start : start + SHARD_ROWS]


def tar_members(number: int, row: Facts) -> list[tuple[str, bytes]]:
    """The three members of a downloaded row, in the order of webdataset's writer."""
    return [
        (f"{row['key']}.jpg", picture(number)),
        (f"{row['key']}.json", json.dumps(row, indent=4).encode()),
        (f"{row['key']}.txt", (row["caption"] or "").encode()),
    ]


def downloaded(rows: Sequence[tuple[int, Facts]]) -> list[tuple[int, Facts]]:
    """The rows whose download succeeded."""
    return [(number, row) for number, row in rows if row["status"] == "success"]


def write_webdataset(folder: Path, rows: Sequence[Facts]) -> None:
    """Tars, each with its table."""
    for name, numbered in shards(rows):
        members = [member for number, row in downloaded(numbered) for member in tar_members(number, row)]
        write_tar(folder / f"{name}.tar", members)
        write_parquet(folder / f"{name}.parquet", [row for _, row in numbered])


def write_files(folder: Path, rows: Sequence[Facts]) -> None:
    """A folder of pictures and a table per shard."""
    for name, numbered in shards(rows):
        for number, row in downloaded(numbered):
            for member, payload in tar_members(number, row):
                write_file(folder / name / member, payload)
        write_parquet(folder / f"{name}.parquet", [row for _, row in numbered])


def write_inside(folder: Path, rows: Sequence[Facts]) -> None:
    """Tables with the pictures inside."""
    for name, numbered in shards(rows):
        inside = [{**row, "jpg": picture(number) if row["status"] == "success" else None} for number, row in numbered]
        write_parquet(folder / f"{name}.parquet", inside)


def laion(number: int) -> Facts:
    """LAION's own columns; the last row has no scores."""
    return {
        "similarity": 0.25 + number / 100,
        "hash": number * 1_000_003,
        "punsafe": 0.01 * number,
        "pwatermark": float("nan") if number == 1 else 0.1,
        "LICENSE": "cc-by-nc" if number == 3 else "?",
        "NSFW": "UNLIKELY",
    }


def write_laion_en(folder: Path) -> None:
    """Two shards of tars."""
    write_webdataset(folder, [facts(n, _ENGLISH[n % 4], laion(n)) for n in range(7)])


def write_laion_zh(folder: Path) -> None:
    """Pictures as files, of the subset in Chinese of laion2B-multi."""
    write_files(folder, [facts(n, _CHINESE[n % 4], {**laion(n), "LANGUAGE": "zh"}) for n in range(4)])


def write_laion_coco(folder: Path) -> None:
    """Tars with generated captions."""
    rows = []
    for number in range(4):
        captions = [f"a photo of number {number}", f"number {number} on a wall", f"a photo of number {number}"]
        generated = {"top_caption": captions[1], "all_captions": captions, "all_similarities": [0.2, 0.31, 0.2]}
        rows.append(facts(number, _ENGLISH[number], {**laion(number), **generated}))
    write_webdataset(folder, rows)


def write_datacomp(folder: Path) -> None:
    """Shards two folders deep, as the downloader of DataComp writes them, with scores in the tables alone.

    The tables of links, which the downloader fetches first, are there too.
    """
    links = [{"uid": f"{n:032x}", "url": f"https://pictures.example/{n}.jpg", "text": _ENGLISH[n]} for n in range(4)]
    write_parquet(folder / "metadata" / "small" / f"{0:032x}.parquet", links)
    rows = [facts(n, _ENGLISH[n % 4], {"uid": f"{n:032x}"}) for n in range(4)]
    target = folder / "shards" / "small"
    write_webdataset(target, rows)
    scores = [
        {**row, "clip_b32_similarity_score": 0.2 + n / 10, "clip_l14_similarity_score": 0.1 + n / 10}
        for n, row in enumerate(rows)
    ]
    write_parquet(target / "00000.parquet", scores)


def write_coyo_700m(folder: Path) -> None:
    """Tables with the pictures inside."""
    scores = {
        "clip_similarity_vitb32": 0.3,
        "clip_similarity_vitl14": 0.25,
        "nsfw_score_opennsfw2": 0.001,
        "nsfw_score_gantman": 0.03,
        "watermark_score": 0.1,
        "aesthetic_score_laion_v2": 5.25,
    }
    write_inside(folder, [facts(n, _ENGLISH[n % 4], scores) for n in range(4)])


def write_image_text(folder: Path) -> None:
    """Pairs of somebody's own: tars without a table, the picture in another format, and no JSON."""
    members = [
        (f"{n:04d}.{suffix}", payload)
        for n in range(3)
        for suffix, payload in (
            ("png", picture(n, "PNG")),
            ("txt", _CHINESE[n].encode()),
        )
    ]
    write_tar(folder / "pairs-000.tar", members)
