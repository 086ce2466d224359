"""The child process that drives Chromium (Playwright): screens of HTML files and their text. See `worker` and `html`.

A request is `{"file", "folder", "top", "cache", "chromium", "no_sandbox", ...settings}`; the answer is one screen with
its JPEG, `{"width", "height", "lines", "next", "read"}`, or `{"failed": reason, "detail"}`. `next` is the height at
which the next screen begins, null after the last one; `read` names the files that the page has used.

The page's scripts do not run. Every request of the page ends in `_Folder.answer`, and host names lead nowhere.
"""

from __future__ import annotations

import functools
import mimetypes
import os
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from playwright.sync_api import Browser, BrowserContext, Error, Page, Playwright, Route, sync_playwright

from data_pipelines.ocr import html_ink, html_script
from data_pipelines.ocr.fonts import FONT_FOLDERS, code_points_below
from data_pipelines.ocr.worker import Answer, serve
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

ORIGIN = "http://page.invalid/"
MOST_BYTES = 32 << 20  # of one file
MOST_CHARACTERS = 50_000  # in one window
_LEAST_SHARE = 0.6  # of the window's height that a screen keeps if its lower part would cut lines
_FLAGS = (
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--dns-prefetch-disable"),
    *("--disable-gpu", "--mute-audio", "--hide-scrollbars", "--font-render-hinting=none"),
)
_SERVED = ("document", "stylesheet", "image", "font")


class _Folder:
    """Answers the requests of one document with files below its folder, and with nothing else."""

    def __init__(self, folder: str, name: str):
        self._folder = storage.path(folder)
        self.url = ORIGIN + urllib.parse.quote(name, errors="surrogateescape")
        self.read: list[str] = []
        self.problem = ""
        self._opened = False

    def answer(self, route: Route) -> None:
        """Fulfils or refuses one request."""
        request = route.request
        try:
            if request.is_navigation_request() and (self._opened or request.frame.parent_frame is not None):
                # A page that leads elsewhere stays; a page within the page is empty, because its text is not listed.
                is_main = request.frame.parent_frame is None
                route.fulfill(status=204) if is_main else route.fulfill(body="", content_type="text/html")
                return
            body = self._body(request.url) if request.resource_type in _SERVED else None
            if body is None:
                route.abort()
                return
            self._opened |= request.is_navigation_request()
            is_page = request.is_navigation_request()
            kind = "text/html" if is_page else mimetypes.guess_type(request.url)[0] or "application/octet-stream"
            route.fulfill(body=body, content_type=kind)
        except Error:  # the page is gone
            return

    def _body(self, url: str) -> bytes | None:
        if not url.startswith(ORIGIN):
            return None
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path, errors="surrogateescape").lstrip("/")
        path = self._folder / name
        if ".." in name.split("/") or "\0" in name or not self._is_below(path):
            return None
        try:
            if storage.size(path) > MOST_BYTES:
                self.problem = self.problem or f"{name} has more than {MOST_BYTES >> 20} MiB"
                return None
            body = storage.read_bytes(path)
        except (OSError, StorageError, UserError, ValueError):  # also a pipe or a device under the name
            return None
        self.read.append(os.fspath(path))
        return body

    def _is_below(self, path: os.PathLike[str]) -> bool:
        """Whether no link leads out of the folder."""
        if storage.is_remote(path):
            return True
        root = os.path.realpath(self._folder)
        return os.path.commonpath([root, os.path.realpath(path)]) == root


class _Browser:
    """The browser, and the document that was opened last."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        self._fonts = ""
        self._context: BrowserContext | None = None
        self._opened: tuple[str, str] = ("", "")
        self.page: Page | None = None
        self.folder: _Folder | None = None

    def open(self, request: dict[str, Any]) -> Page:
        """The page of the request's file, loaded."""
        wanted = (request["folder"], request["file"])
        if self.page is not None and self._opened == wanted and request["top"]:
            return self.page
        self.close()
        browser = self._started(request)
        self._context = browser.new_context(
            java_script_enabled=False,
            viewport={"width": request["width"], "height": request["height"]},
            service_workers="block",
            accept_downloads=False,
            offline=False,
        )
        self.folder = _Folder(*wanted)
        self._context.route("**/*", self.folder.answer)
        page = self._context.new_page()
        page.goto(self.folder.url, timeout=1000 * request["load_timeout_s"], wait_until="load")
        self.page = page
        self._opened = wanted
        return page

    def close(self) -> None:
        """Closes the document."""
        self.page = None
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _started(self, request: dict[str, Any]) -> Browser:
        if self._browser is not None and self._fonts != request["cache"]:
            self._browser.close()
        if self._browser is None or not self._browser.is_connected():
            self._fonts = request["cache"]
            self._playwright = self._playwright or sync_playwright().start()
            flags = [*_FLAGS, *(["--no-sandbox"] if request["no_sandbox"] else [])]
            self._browser = self._playwright.chromium.launch(
                executable_path=request["chromium"],
                args=flags,
                env={**os.environ, "FONTCONFIG_FILE": _fontconfig(request["cache"])},
            )
        return self._browser


_browser = _Browser()


def answer(request: dict[str, Any]) -> Answer:
    """One screen of a document."""
    try:
        page = _browser.open(request)
        assert _browser.folder is not None
        if _browser.folder.problem:
            return {"failed": "document too large", "detail": _browser.folder.problem}, b""
        return _screen(page, _browser.folder, request)
    except Error as error:
        if "crash" in error.message or "closed" in error.message:
            os._exit(1)  # the parent asks another process
        slow = "Timeout" in type(error).__name__ or "Timeout" in error.message
        reason = "page never finished" if slow else "page did not open"
        try:
            _browser.close()
        except Error:
            os._exit(1)  # the parent starts another process
        return {"failed": reason, "detail": one_line(error.message)}, b""


def _screen(page: Page, folder: _Folder, request: dict[str, Any]) -> Answer:
    top, whole = page.evaluate(html_script.SCROLL, request["top"])
    pieces = page.evaluate(html_script.PIECES, MOST_CHARACTERS)
    if pieces is None:
        return {"failed": "too much text on one page", "detail": f"more than {MOST_CHARACTERS} characters"}, b""
    shown_HWC = _picture(page)
    page.evaluate(html_script.HIDE_TEXT, True)
    without_HWC = _picture(page)
    page.evaluate(html_script.HIDE_TEXT, False)
    skipped = request["top"] - top  # the last screen cannot be scrolled to its top
    is_last = top + shown_HWC.shape[0] >= whole
    lines, turned = html_ink.visible_lines(pieces, html_ink.ink(shown_HWC, without_HWC))
    if turned:
        return {"failed": "slanted text", "detail": "text from right to left, in columns or turned"}, b""
    drawable = _drawable(request["cache"])
    missing = {character for line in lines for character in line.text if ord(character) not in drawable} - {" "}
    if missing:
        return {"failed": "no font for a character", "detail": _some_of(missing)}, b""
    spans = [(line.quad[0][1], line.quad[2][1]) for line in lines]
    bottom = shown_HWC.shape[0] if is_last else _bottom(spans, shown_HWC.shape[0])
    kept = [
        [line.text, [[x, y - skipped] for x, y in line.quad]]
        for line in lines
        if line.quad[0][1] >= skipped and line.quad[2][1] <= bottom
    ]
    picture_HWC = np.ascontiguousarray(shown_HWC[skipped:bottom])
    quality = [cv2.IMWRITE_JPEG_QUALITY, request["quality"]]
    quality += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    payload = cv2.imencode(".jpg", picture_HWC, quality)[1].tobytes()
    height, width = picture_HWC.shape[:2]
    answer = {"width": width, "height": height, "lines": kept, "read": folder.read}
    return {**answer, "next": None if is_last else top + bottom}, payload


def _some_of(characters: set[str]) -> str:
    """How many characters there are, and the first five: as they are, and as numbers for a reader without a font."""
    some = sorted(characters)[:5]
    names = ", ".join(f"{character} (U+{ord(character):04X})" for character in some)
    more = f" and {len(characters) - len(some)} others" if len(characters) > len(some) else ""
    return f"{names}{more}"


def _picture(page: Page) -> np.ndarray:
    """[H, W, 3] uint8, BGR."""
    encoded = page.screenshot(animations="disabled", caret="hide", type="png")
    picture_HWC = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert picture_HWC is not None
    return picture_HWC


def _bottom(spans: list[tuple[float, float]], height: int) -> int:
    """The lowest height at which a screen can end without cutting through a line; all of it if there is none."""
    for bottom in range(height, int(_LEAST_SHARE * height), -1):
        # Ink that touches the edge of the window may go on below it.
        if all(y2 < bottom or (y1 >= bottom and bottom < height) for y1, y2 in spans):
            return bottom
    return height


@functools.cache
def _drawable(cache: str) -> frozenset[int]:
    return code_points_below((*FONT_FOLDERS, cache) if cache else FONT_FOLDERS)


@functools.cache
def _fontconfig(cache: str) -> str:
    """A file that names the fonts of the system and of the cache, if there is one."""
    folder = tempfile.mkdtemp(prefix="qwenvl-fonts-")
    file = Path(folder) / "fonts.conf"
    path = os.path.abspath(cache).replace("&", "&amp;").replace("<", "&lt;")
    fonts = f"<dir>{path}</dir>" if cache else ""
    file.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        '<include ignore_missing="yes">/etc/fonts/fonts.conf</include>'
        f"{fonts}<cachedir>{folder}/cache</cachedir></fontconfig>"
    )
    return str(file)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    serve(answer)
