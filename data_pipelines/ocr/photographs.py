"""Photographs behind synthetic documents: a folder of files, such as COCO's train2017, or wallpapers of Debian.

photographs = Photographs.in_folders(["gs://bucket/coco/train2017", "gs://bucket/coco/unlabeled2017"])
photographs = Photographs.of_debian(Path("data/cache"))     # 7 photographs, CC-BY-4.0 or CC0-1.0
pixels_HWC = photographs.backdrop(rng, width=1024, height=768, blur=2.5)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from etils import epath

from data_pipelines.fetch.apt import SourceUnavailable
from data_pipelines.fetch.wallpapers import wallpapers
from qwenvl_jax.data.images.exact import SUFFIXES, decode_image
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

DRAFT_PX = 1024  # the sides of a decoded JPEG are at least this long, if those of the file are
_DECODED = 8  # photographs that stay in memory
_ATTEMPTS = 20  # files that are tried before an error


class Photographs:
    """Picture files in a fixed order. A file that is no readable picture is passed over for the next one."""

    def __init__(self, paths: Sequence[epath.PathLike]):
        self._paths = [storage.path(path) for path in paths]
        if not self._paths:
            raise UserError("synthetic pages need at least one photograph behind them; name a folder that has some")
        self._decoded = functools.lru_cache(maxsize=_DECODED)(_decode)

    @classmethod
    def in_folders(cls, folders: Sequence[epath.PathLike]) -> Photographs:
        """The pictures directly in the folders, in the order of the folders and then of the names.

        Raises:
          UserError: if there are no pictures.
        """
        paths = []
        for folder in folders:
            listed = storage.names(folder) if storage.is_folder(folder) else []
            names = sorted(name for name in listed if name.rpartition(".")[2].lower() in SUFFIXES)
            paths += [storage.path(folder) / name for name in names]
        if not paths:
            kinds = " or ".join(SUFFIXES)
            raise UserError(f"{', '.join(map(str, folders))} has no file in {kinds}; name a folder of photographs")
        return cls(paths)

    @classmethod
    def of_debian(cls, cache: Path) -> Photographs:
        """The wallpapers of `fetch.wallpapers`.

        Raises:
          UserError: if the package is not available.
        """
        try:
            return cls(wallpapers(cache))
        except SourceUnavailable as error:
            raise UserError(
                f"no photographs from Debian ({error}); name a folder of photographs as backgrounds"
            ) from None

    def backdrop(self, rng: np.random.Generator, width: int, height: int, blur: float) -> np.ndarray:
        """A random photograph, cut to the shape of the page at a random position.

        Args:
          rng: equal states give equal pixels.
          width, height: of the page, in pixels.
          blur: standard deviation in pixels of the page.

        Returns:
          [height, width, 3] uint8, RGB.

        Raises:
          UserError: if many files in a row are no pictures.
        """
        first = int(rng.integers(len(self._paths)))
        across, down = rng.random(2)
        for attempt in range(min(_ATTEMPTS, len(self._paths))):
            pixels_HWC = self._decoded(self._paths[(first + attempt) % len(self._paths)])
            if pixels_HWC is not None:
                return _fitted(pixels_HWC, width, height, across, down, blur)
        raise UserError(f"{self._paths[first]} and the files after it are no readable pictures; remove them")


def _decode(path: epath.Path) -> np.ndarray | None:
    try:
        return np.asarray(decode_image(storage.read_bytes(path), draft=DRAFT_PX))
    except UserError:
        return None


def _fitted(pixels_HWC: np.ndarray, width: int, height: int, across: float, down: float, blur: float) -> np.ndarray:
    """The largest crop of the page's shape, resized to the page, then blurred.

    A strong blur is computed on a smaller picture, because it removes all that is lost there.
    """
    rows, columns = pixels_HWC.shape[:2]
    scale = min(columns / width, rows / height)
    cut_width = max(1, round(width * scale))
    cut_height = max(1, round(height * scale))
    x = int(across * (columns - cut_width + 1))
    y = int(down * (rows - cut_height + 1))
    cut = pixels_HWC[y : y + cut_height, x : x + cut_width]
    shrunk = max(1, int(blur / 2))
    small = (max(1, width // shrunk), max(1, height // shrunk))
    method = cv2.INTER_AREA if small[0] < cut_width else cv2.INTER_LINEAR
    page = cv2.resize(cut, small, interpolation=method)
    if blur > 0.3:
        page = cv2.GaussianBlur(page, (0, 0), blur / shrunk)
    return page if shrunk == 1 else cv2.resize(page, (width, height), interpolation=cv2.INTER_LINEAR)
