"""The child process that opens PDF files (pypdfium2): text with boxes, and pictures of pages. See `worker` and `pdf`.

Requests: `{"file"}` -> `{"pages"}`; `{"file", "page", "dpi", "most_pixels", "quality"}` -> the page, with its JPEG.
Either may be answered `{"failed": reason, "detail"}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from ctypes import c_double, c_int
from typing import Any

import cv2
import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from data_pipelines.ocr.worker import Answer, serve
from qwenvl_jax.runtime.errors import one_line

MEMORY_BYTES = 4 << 30
MOST_CHARACTERS = 50_000  # of a page; one with more is not looked at
REPLACEMENT = "\ufffd"  # stands for a glyph that has no character
# pdfium rounds coordinates on the picture to whole pixels, so it is asked about a picture so many times as large.
_FINE = 4096
# How far a line of text may be from upright, in radians.
_UPRIGHT = 0.02


class _Failed(Exception):
    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason)
        self.answer = {"failed": reason, "detail": one_line(detail) if detail else ""}


class _Documents:
    """The document that was opened last."""

    def __init__(self) -> None:
        self._file = ""
        self._document: pypdfium2.PdfDocument | None = None

    def open(self, file: str, again: bool) -> pypdfium2.PdfDocument:
        """The document; a file that may have changed is opened again."""
        if self._document is None or again or file != self._file:
            if self._document is not None:
                self._document.close()
                self._document = None
            try:
                self._document = pypdfium2.PdfDocument(file)
            except pypdfium2.PdfiumError as error:
                locked = getattr(error, "err_code", None) == pdfium.FPDF_ERR_PASSWORD or "assword" in str(error)
                raise _Failed("PDF needs a password" if locked else "broken PDF", error) from None
            self._file = file
        return self._document


_documents = _Documents()


def answer(request: dict[str, Any]) -> Answer:
    """The answer to one request."""
    try:
        document = _documents.open(request["file"], again="page" not in request)
        if "page" not in request:
            return {"pages": len(document)}, b""
        return _page(document, request)
    except _Failed as error:
        return error.answer, b""
    except (pypdfium2.PdfiumError, MemoryError, ValueError, cv2.error) as error:
        return {"failed": "broken page", "detail": one_line(error)}, b""


def _page(document: pypdfium2.PdfDocument, request: dict[str, Any]) -> Answer:
    page = document[request["page"]]
    try:
        scale = request["dpi"] / 72
        size = [math.ceil(side * scale) if math.isfinite(side) else 0 for side in page.get_size()]
        if min(size) < 1:
            raise _Failed("empty page")
        if size[0] * size[1] > request["most_pixels"] or max(size) > 1 << 15:
            raise _Failed("page too large", f"{size[0]} x {size[1]} pixels")
        characters = list(_characters(page, size[0], size[1]))
        bitmap = page.render(scale=scale, draw_annots=False, may_draw_forms=False)
        pixels_HWC = bitmap.to_numpy()[..., :3]  # BGR
        height, width = pixels_HWC.shape[:2]
        quality = [cv2.IMWRITE_JPEG_QUALITY, request["quality"]]
        quality += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        payload = cv2.imencode(".jpg", np.ascontiguousarray(pixels_HWC), quality)[1].tobytes()
        contrast = _contrasts(pixels_HWC, [box for _, box, _, _ in characters])
        rows = [
            [text, *([round(side, 2) for side in box] if box else [0, 0, 0, 0]), turn, int(ink), round(font_height, 2)]
            for (text, box, turn, font_height), ink in zip(characters, contrast, strict=True)
        ]
        return {"width": width, "height": height, "characters": rows}, payload
    finally:
        page.close()


# A character; its box on the picture (None for a space or the end of a line); its direction, which is 0 to 3 quarter
# turns clockwise on the picture, or -1 for text that is not upright; the height of its font in pixels of the picture.
_Character = tuple[str, tuple[float, float, float, float] | None, int, float]


def _characters(page: pypdfium2.PdfPage, width: int, height: int) -> Iterator[_Character]:
    rotation = page.get_rotation()
    mapping = _Mapping(page, width, height)
    page.set_rotation(0)  # pdfium sorts the lines of a turned page from bottom to top
    text_page = page.get_textpage()
    try:
        count = text_page.count_chars()
        if count > MOST_CHARACTERS:
            raise _Failed("too much text on one page", f"{count} characters")
        pending = 0  # the first half of a character of two units
        for index in range(count):
            code = pdfium.FPDFText_GetUnicode(text_page.raw, index)
            if 0xD800 <= code < 0xDC00:
                pending = code
                continue
            if 0xDC00 <= code < 0xE000 and pending:
                code = 0x10000 + ((pending - 0xD800) << 10) + (code - 0xDC00)
            pending = 0
            text = _text_of(text_page, index, code)
            if not text or not _is_drawn(text_page, index):
                continue
            if text.isspace():
                yield text, None, 0, 0.0
                continue
            turns = _quarter_turns(text_page, index)
            turn = -1 if turns is None else (rotation // 90 + turns) % 4
            x1, y1, x2, y2 = mapping.box(text_page.get_charbox(index, loose=True))
            font_height = x2 - x1 if turn % 2 else y2 - y1
            yield text, mapping.box(text_page.get_charbox(index)), turn, font_height
    finally:
        text_page.close()
        page.set_rotation(rotation)


def _text_of(text_page: pypdfium2.PdfTextPage, index: int, code: int) -> str:
    if pdfium.FPDFText_IsHyphen(text_page.raw, index) == 1:
        return "-"
    if pdfium.FPDFText_IsGenerated(text_page.raw, index) == 1:
        return "\n" if chr(code) in "\r\n" else " "
    if code in (0, 0xFFFE, 0xFFFF) or pdfium.FPDFText_HasUnicodeMapError(text_page.raw, index) == 1:
        return REPLACEMENT
    text = chr(code) if not 0xD800 <= code < 0xE000 else REPLACEMENT
    if text.isspace():
        return "\n" if text in "\r\n" else " "
    return REPLACEMENT if code < 0x20 or 0x7F <= code < 0xA0 else text


def _is_drawn(text_page: pypdfium2.PdfTextPage, index: int) -> bool:
    """Whether the text object paints: scanned pages have their recognised text in a mode that does not."""
    text_object = pdfium.FPDFText_GetTextObject(text_page.raw, index)
    if not text_object:
        return True
    mode = pdfium.FPDFTextObj_GetTextRenderMode(text_object)
    return mode not in (pdfium.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium.FPDF_TEXTRENDERMODE_CLIP)


class _Mapping:
    """From page space to the picture, after the page's rotation and crop box: asked of pdfium at three points."""

    def __init__(self, page: pypdfium2.PdfPage, width: int, height: int):
        self._origin = self._asked(page, width, height, 0, 0)
        moved_x = self._asked(page, width, height, 1000, 0)
        moved_y = self._asked(page, width, height, 0, 1000)
        self._by_x = [(moved_x[axis] - self._origin[axis]) / 1000 for axis in (0, 1)]
        self._by_y = [(moved_y[axis] - self._origin[axis]) / 1000 for axis in (0, 1)]

    @staticmethod
    def _asked(page: pypdfium2.PdfPage, width: int, height: int, x: float, y: float) -> tuple[float, float]:
        across, down = c_int(), c_int()
        size = (width * _FINE, height * _FINE)
        pdfium.FPDF_PageToDevice(page.raw, 0, 0, *size, 0, c_double(x), c_double(y), across, down)
        return across.value / _FINE, down.value / _FINE

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The box around a box of page space (left, bottom, right, top)."""
        (x1, y1), (x2, y2) = (self._point(*corner) for corner in (box[:2], box[2:]))
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return (
            self._origin[0] + x * self._by_x[0] + y * self._by_y[0],
            self._origin[1] + x * self._by_x[1] + y * self._by_y[1],
        )


def _quarter_turns(text_page: pypdfium2.PdfTextPage, index: int) -> int | None:
    """How often a character is turned by 90 degrees clockwise in page space; None if by another angle."""
    angle = pdfium.FPDFText_GetCharAngle(text_page.raw, index)  # radians; negative if it is not known
    turns = round(angle / (math.pi / 2)) if angle > 0 else 0
    return None if abs(angle - turns * math.pi / 2) > _UPRIGHT and angle > 0 else turns


def _contrasts(pixels_HWC: np.ndarray, boxes: list[tuple[float, float, float, float] | None]) -> list[int]:
    """The difference between the lightest and the darkest pixel of each box, of 255; 0 for none."""
    gray_HW = cv2.cvtColor(np.ascontiguousarray(pixels_HWC), cv2.COLOR_BGR2GRAY)
    height, width = gray_HW.shape
    contrasts = []
    for box in boxes:
        if box is None:
            contrasts.append(0)
            continue
        x1, y1 = max(0, math.floor(box[0]) - 1), max(0, math.floor(box[1]) - 1)
        x2, y2 = min(width, math.ceil(box[2]) + 1), min(height, math.ceil(box[3]) + 1)
        part = gray_HW[y1:y2, x1:x2]
        contrasts.append(int(part.max()) - int(part.min()) if part.size else 0)
    return contrasts


if __name__ == "__main__":
    cv2.setNumThreads(1)
    serve(answer, MEMORY_BYTES)
