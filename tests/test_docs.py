"""What README and docs name is there: pages, files, keys of a config, variables, modules that are run."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from qwenvl_jax import config as config_lib
from qwenvl_jax.config import Config

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("qwenvl_jax", "configs", "data_pipelines", "tests", "benchmarks")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The names under which GitHub finds the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_every_page_is_linked_from_the_index() -> None:
    assert "](docs/README.md)" in PAGES[0].read_text()
    text = INDEX.read_text()
    pages_of_docs = [page for page in PAGES if page.parent == INDEX.parent and page != INDEX]
    assert [page.name for page in pages_of_docs if f"]({page.name})" not in text] == []


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^`\s:]*)", page.read_text()):
        pattern = re.sub(r"KIND", "*", name).rstrip("/")  # as in configs/meshes/KIND.py
        assert list(ROOT.glob(pattern)), name


@pages
def test_modules_that_are_run_exist(page: Path) -> None:
    for name in re.findall(r"python -m ((?:qwenvl_jax|data_pipelines|benchmarks)[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")), name


def keys() -> set[str]:
    """`data.seed` and so on: what a config has, down to the fields of the towers."""
    found: set[str] = set()

    def walk(kind: type, path: str) -> None:
        for field in dataclasses.fields(kind):
            name = f"{path}{field.name}"
            found.add(name)
            own = getattr(config_lib, str(field.type), None)
            if dataclasses.is_dataclass(own):
                walk(own, f"{name}.")  # type: ignore[arg-type]

    walk(Config, "")
    return found


@pages
def test_keys_of_a_config_that_are_named_exist(page: Path) -> None:
    known, groups = keys(), "|".join(field.name for field in dataclasses.fields(Config))
    text = page.read_text()
    named = re.findall(rf"config\.((?:{groups})(?:\.[a-z]\w*)+)", text)
    named += re.findall(r"`((?:train|compute|optimizer|init|mesh)\.[a-z]\w*)", text)
    for name in named:
        if name.endswith(".py"):
            continue
        assert any(key == name or (name.endswith("_") and key.startswith(name)) for key in known), name


def test_variables_of_ours_are_those_of_the_docs() -> None:
    sources = (ROOT / "qwenvl_jax").rglob("*.py")
    told, read = (
        {name for path in paths for name in re.findall(r"QWENVL_\w+", path.read_text())} for paths in (PAGES, sources)
    )
    assert told == read
