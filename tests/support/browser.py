"""The page of the server in a real browser, for tests: fixtures, and what people do with a page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from data_pipelines.ocr.html import BROWSERS, find_chromium
from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.serving.api import ApiSettings
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.examples import ExampleQuestion
from qwenvl_jax.serving.options import EngineSettings
from tests.evaluation.samples import grey as picture
from tests.support.api_server import PATIENCE_S, serving

needs_chromium = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed")

SCRIPTED = "**/v1/chat/completions"


@pytest.fixture(scope="module")
def page_engine(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(loaded, tokenizer, config.data.image_size, EngineSettings(slots=2)) as running:
        yield running


@pytest.fixture(scope="module")
def page_url(page_engine: Engine) -> Iterator[str]:
    examples = (ExampleQuestion("Where is <ref>the square</ref>?", (picture(30, 30), picture(20, 40))),)
    with serving(page_engine, ApiSettings("tiny", "tiny, step 3", has_page=True, examples=examples)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        yield running
        running.close()


Open = Callable[..., Any]


def leads_away(asked: str, address: str) -> bool:
    return asked.startswith("http") and not asked.startswith(address)


@pytest.fixture
def open_page(browser: Any, page_url: str) -> Iterator[Open]:
    """Opens the page; afterwards nothing may have gone wrong in it or been asked of another server."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def opened(address: str = page_url, **settings: Any) -> Any:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1000, "height": 800}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "Security" in message.text else None)
        page.on(
            "request",
            lambda asked: (
                wrong.append(asked.url) if asked.url.startswith("http") and not asked.url.startswith(address) else None
            ),
        )
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(address)
        until(page, "document.getElementById('model').textContent || document.querySelector('dialog[open]')")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def until(page: Any, condition: str) -> None:
    """Waits for a condition, without `wait_for_function`: that evaluates a text, which the page's policy forbids."""
    end = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def answer_with(page: Any, *pieces: str, reason: str = "stop", **end: Any) -> None:
    """Has the browser hear these pieces as the answer to every question."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces
    ]
    chunks.append({"choices": [{"delta": {}, "finish_reason": reason}], **end})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ": still here\n\ndata: [DONE]\n\n"
    page.route(SCRIPTED, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def show_pictures(page: Any, *pictures: bytes) -> None:
    files = [{"name": f"{k}.png", "mimeType": "image/png", "buffer": each} for k, each in enumerate(pictures)]
    page.set_input_files("#files", files)
    until(page, f"document.querySelectorAll('#shown img').length === {len(pictures)}")


def ask(page: Any, text: str, *pictures: bytes) -> None:
    if pictures:
        show_pictures(page, *pictures)
    page.fill("#question", text)
    page.press("#question", "Enter")


def wait_for_end(page: Any, answers: int = 1) -> None:
    until(
        page, f"document.querySelectorAll('.assistant').length === {answers} && !document.querySelector('[aria-busy]')"
    )
