"""Finds the visible text of a browser's window and its exact position from two pictures, with and without text.

Pixels that differ are ink. A character without ink is hidden, covered, clipped, or as dark as what is behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.ocr.pdf import Character, lines_of
from data_pipelines.pair import Line

LEAST = 24  # difference of a pixel, of 255, that counts as ink
_TALLEST = 1.5  # height of a shape of ink, of the line's box
_BESIDE_PX = 3  # how far ink may reach out of the box of its line to the left and right


def ink(with_text_HWC: np.ndarray, without_text_HWC: np.ndarray) -> np.ndarray:
    """[H, W] uint8, 1 if the pixel shows text."""
    difference = cv2.absdiff(with_text_HWC, without_text_HWC).max(axis=2)
    return (difference >= LEAST).astype(np.uint8)


def visible_lines(pieces: Sequence[Any], ink_HW: np.ndarray) -> tuple[list[Line], bool]:
    """The visible lines of text with the rectangles of their ink, and whether visible text is not upright.

    Args:
      pieces: of `html_script.PIECES`.
      ink_HW: of `ink`.
    """
    height, width = ink_HW.shape
    characters: list[Character | str] = []
    turned = False
    sums = cv2.integral(ink_HW)
    block_before = -1
    for texts, boxes, block, upright in pieces:
        if block != block_before:
            characters.append("\n")
        block_before = block
        for text, box in zip(texts, boxes, strict=True):
            if box is None or text.isspace():
                characters.append(" ")
                continue
            edges = (box[0], box[1], box[0] + box[2], box[1] + box[3])
            if not _has_ink(sums, edges):
                continue
            turned |= not upright
            characters.append(Character(text, edges, 0))
    lines = list(lines_of(characters, width, height))
    return list(_tightened(lines, ink_HW)), turned


def _has_ink(sums: np.ndarray, box: tuple[float, float, float, float]) -> bool:
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    x1, x2 = (int(np.clip(side, 0, width)) for side in (np.floor(box[0]), np.ceil(box[2])))
    y1, y2 = (int(np.clip(side, 0, height)) for side in (np.floor(box[1]), np.ceil(box[3])))
    return bool(sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1])


def _tightened(lines: Sequence[Line], ink_HW: np.ndarray) -> Iterator[Line]:
    """The lines with the rectangle of their ink. Boxes of narrow lines overlap, so each shape of ink goes to one."""
    if not lines:
        return
    boxes = np.asarray([(*line.quad[0], *line.quad[2]) for line in lines])
    _, _, shapes, centers = cv2.connectedComponentsWithStats(ink_HW, connectivity=8)
    shapes, centers = shapes[1:], centers[1:]  # the first is what is no ink
    x1, y1, x2, y2 = boxes.T
    x, y = centers[:, :1], centers[:, 1:]
    inside = (x >= x1 - _BESIDE_PX) & (x <= x2 + _BESIDE_PX) & (y >= y1) & (y <= y2)
    inside &= shapes[:, 3:4] <= _TALLEST * (y2 - y1)  # else it is no letter, but a frame that goes with the text
    away = np.where(inside, np.abs(y - (y1 + y2) / 2), np.inf)
    nearest = np.where(inside.any(axis=1), away.argmin(axis=1), -1)
    for number, line in enumerate(lines):
        of_line = shapes[nearest == number]
        if not len(of_line):
            continue
        left, top = of_line[:, 0].min(), of_line[:, 1].min()
        right = (of_line[:, 0] + of_line[:, 2]).max()
        bottom = (of_line[:, 1] + of_line[:, 3]).max()
        corners = [(float(a), float(b)) for a, b in ((left, top), (right, top), (right, bottom), (left, bottom))]
        yield Line(line.text, (corners[0], corners[1], corners[2], corners[3]))
