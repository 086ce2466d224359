"""Serves the files of the page, and what it has to know of this server."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from qwenvl_jax.serving.examples import ExampleQuestion

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = ("index.html", "page.css", "page.js", "answer.js", "pictures.js", "stream.js", "words.js", "icon.svg")

# Nothing from another origin, nothing inline, no frame around the page, and no way to send a form away.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclasses.dataclass(frozen=True)
class PageSettings:
    """What the page knows of the server.

    Attributes:
      model: the name under which the model is served.
      description: a line about it.
      max_pictures: of a request.
      max_body_bytes: of the body of a request.
      needs_key: whether questions need a key.
    """

    model: str
    description: str
    max_pictures: int
    max_body_bytes: int
    needs_key: bool


def add_to(app: FastAPI, settings: PageSettings, examples: Sequence[ExampleQuestion]) -> None:
    """Adds the page at `/` to an application. The files are read once and are the only ones that it can give."""
    folder = importlib.resources.files("qwenvl_jax.serving.page")
    shown = [_as_json(example) for example in examples]
    for name in _FILES:
        content = (folder / name).read_bytes()
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        _add(
            app, "/" if name == "index.html" else f"/page/{name}", Response(content, headers=_HEADERS, media_type=kind)
        )
    _add(app, "/page/settings", JSONResponse(dataclasses.asdict(settings), headers=_HEADERS))
    _add(app, "/page/examples", JSONResponse(shown, headers=_HEADERS))


def _add(app: FastAPI, path: str, response: Response) -> None:
    async def respond() -> Response:
        return response

    app.add_api_route(path, respond, methods=["GET"])


def _as_json(example: ExampleQuestion) -> dict[str, object]:
    pictures = [f"data:{example.media_type(k)};base64,{_base64(image)}" for k, image in enumerate(example.images)]
    return {"question": example.question, "pictures": pictures}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
