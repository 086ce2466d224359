"""The tiny model of the tests of evaluation, and the page of a server in a browser."""

from tests.evaluation.conftest import checkpoint, config, loaded, params, tokenizer
from tests.support.browser import browser, open_page, page_engine, page_url

__all__ = ["browser", "checkpoint", "config", "loaded", "open_page", "page_engine", "page_url", "params", "tokenizer"]
