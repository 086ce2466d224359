"""Screens of HTML files as pictures with their visible lines of text (paper, A.4), rendered by headless Chromium.

    for screen in read_screens("site/a.html", "site", HtmlSettings()):
        screen.picture.encoded, screen.lines        # or a FailedRow

Text and its lines come from the DOM. Two pictures of the window, with and without text, show which characters are
visible and where (`html_ink`): hidden, clipped, covered and unreadable text is not taught. List markers, text of CSS
and contents of form fields are drawn but not listed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator

from etils import epath

from data_pipelines.ocr.pdf import RenderedPage
from data_pipelines.ocr.worker import WorkerFailed, lent
from data_pipelines.pair import FailedRow, Line, Picture
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

WORKER = "data_pipelines.ocr.html_worker"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclasses.dataclass(frozen=True)
class HtmlSettings:
    """How HTML files are read.

    Attributes:
      width, height: of the window in pixels; a screen is as high or a little lower, so that it cuts no line.
      most_screens: of a file; the rest of the file is not read.
      quality: of the JPEG, 1 to 100.
      load_timeout_s, timeout_s: for all files of a page, and for one screen.
      cache: a folder of fonts for characters that no installed font has, such as those of `fonts.page_fonts`; "" for
        installed fonts alone.
    """

    width: int = 1024
    height: int = 1448
    most_screens: int = 20
    quality: int = 90
    load_timeout_s: float = 20
    timeout_s: float = 60
    cache: str = ""


def find_chromium() -> str:
    """The path of an installed Chromium.

    Raises:
      UserError: if there is none.
    """
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    raise UserError("HTML pages need Chromium; install it, on Debian with: apt-get install chromium")


def read_screens(
    file: epath.PathLike, folder: epath.PathLike, settings: HtmlSettings
) -> Iterator[RenderedPage | FailedRow]:
    """The screens of a file from top to bottom. A file that cannot be opened is one failed row.

    Args:
      file: the document.
      folder: above it; the document may use the files below it and nothing else.
      settings: size of the window, limits.

    Raises:
      UserError: if Chromium is not installed.
    """
    name = os.fspath(storage.path(file).relative_to(storage.path(folder)))
    request = dataclasses.asdict(settings) | {
        "file": name,
        "folder": os.fspath(storage.path(folder)),
        "chromium": find_chromium(),
        # Chromium refuses to run as root inside of its sandbox.
        "no_sandbox": os.geteuid() == 0,
    }
    top = 0
    with lent(WORKER) as worker:
        for number in range(settings.most_screens):
            try:
                answer, payload = worker.ask({**request, "top": top}, settings.timeout_s)
            except WorkerFailed as error:
                yield FailedRow(error.reason, error.detail)
                return
            if "failed" in answer:
                yield FailedRow(answer["failed"], answer["detail"])
                return
            for path in answer["read"]:  # `storage.watched` must see the files that the child has read
                storage.read_bytes(path, 0, 1)
            picture = Picture(payload, width=answer["width"], height=answer["height"])
            lines = tuple(Line(text, tuple((x, y) for x, y in quad)) for text, quad in answer["lines"])  # type: ignore
            yield RenderedPage(number, picture, lines)
            if answer["next"] is None:
                return
            top = answer["next"]
