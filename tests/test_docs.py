"""Whatever README and docs name exists: pages, files, modules, flags, configs, config keys, variables."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import string
import typing
from collections.abc import Iterable
from pathlib import Path

import pytest

from data_pipelines.corpora import page as corpora_page
from qwenvl_jax.config import Config
from qwenvl_jax.evaluation.benchmarks import page as benchmarks_page

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES = [*OTHERS, *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("qwenvl_jax", "configs", "data_pipelines", "launch", "tests", "benchmarks")

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


def test_every_benchmark_is_listed() -> None:
    folder = ROOT / "benchmarks"
    listed = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.py")}
    assert "](../benchmarks/README.md)" in (ROOT / "docs" / "performance.md").read_text()


def test_the_page_of_corpora_is_up_to_date() -> None:
    text = (ROOT / corpora_page.PAGE).read_text()
    assert corpora_page.MARK in text
    assert corpora_page.updated(text) == text, "run `python -m data_pipelines.corpora.page`"


def test_the_page_of_benchmarks_is_up_to_date() -> None:
    text = (ROOT / benchmarks_page.PAGE).read_text()
    assert benchmarks_page.MARK in text
    assert benchmarks_page.updated(text) == text, "run `python -m qwenvl_jax.evaluation.benchmarks.page`"


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
    for name in re.findall(r"python -m ((?:qwenvl_jax|data_pipelines|launch|benchmarks)[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(name.rstrip(".")), name


def commands(page: Path) -> list[str]:
    """The commands in the code blocks of a page, each on one line, with its shell variables filled in."""
    shown = []
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    for block in (text for language, text in blocks if language in ("", "bash")):
        lines = block.replace("\\\n", " ").splitlines()
        variables = dict(re.findall(r"^(\w+)=(\S+)$", "\n".join(lines), re.MULTILINE))
        for line in lines:
            if re.search(r"python -m (?:qwenvl_jax\.|data_pipelines)", line):
                command = line.split("  #")[0]
                shown.append(string.Template(command).substitute(variables))
    return shown


def flags_of(module: str) -> set[str]:
    """The flags that a main defines."""
    spec = importlib.util.find_spec(module)
    if spec and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec and spec.origin
    source = Path(spec.origin).read_text()
    names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    names |= set(re.findall(r'(?:add_argument|add|ask)\(\s*"--(\w+)"', source))
    names |= set(re.findall(r'define_config\([^)]*name="(\w+)"', source))
    names |= set(re.findall(r'^\s+\("(\w+)", [\d.]+, "', source, re.MULTILINE))  # those that are added in a loop
    return names | ({"config"} if "define_config" in source else set())


@pages
def test_commands_take_the_flags_that_are_shown(page: Path) -> None:
    for command in commands(page):
        module = re.findall(r"python -m (\S+)", command)[0]
        for flag in re.findall(r"--(\w+)", command.partition(" --runner=")[0]):  # flags of Beam follow
            assert flag in flags_of(module), command


@pages
def test_configs_of_commands_can_be_built(page: Path) -> None:
    for command in commands(page):
        for value in re.findall(r"--config=(\S+)", command):
            path, _, arguments = value.partition(":")
            if path == "..":
                continue
            spec = importlib.util.spec_from_file_location("shown_config", ROOT / path)
            assert spec and spec.loader, command
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.get_config(*([arguments] if arguments else []))


@pages
def test_python_that_is_shown_compiles_and_names_what_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("qwenvl_jax"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], node.module


def test_every_flag_is_documented() -> None:
    mains = [file for package in ("qwenvl_jax", "launch") for file in (ROOT / package).glob("*.py")]
    text = "\n".join(page.read_text() for page in PAGES)
    defined = {name for file in mains for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', file.read_text())}
    assert len(defined) > 50
    assert sorted(name for name in defined if not re.search(rf"--(?:no)?{name}\b", text)) == []


def keys() -> set[str]:
    """All keys of a config, such as `data.seed`, down to the fields of the towers."""
    names: set[str] = set()

    def walk(kind: type, path: str) -> None:
        for field, field_type in typing.get_type_hints(kind).items():
            names.add(f"{path}{field}")
            if dataclasses.is_dataclass(field_type):
                walk(typing.cast(type, field_type), f"{path}{field}.")

    walk(Config, "")
    return names


@pages
def test_keys_of_a_config_that_are_named_exist(page: Path) -> None:
    known = keys()
    groups = "|".join(field.name for field in dataclasses.fields(Config))
    text = page.read_text()
    named = re.findall(rf"config\.((?:{groups})(?:\.[a-z]\w*)+)", text)
    named += re.findall(r"`((?:train|compute|optimizer|init|mesh)\.[a-z]\w*)", text)
    for name in named:
        if name.endswith(".py"):
            continue
        assert any(key == name or (name.endswith("_") and key.startswith(name)) for key in known), name


def environment_variables(paths: Iterable[Path]) -> set[str]:
    return {name for path in paths for name in re.findall(r"QWENVL_\w+", path.read_text())}


def test_every_environment_variable_is_documented() -> None:
    assert environment_variables((ROOT / "qwenvl_jax").rglob("*.py")) == environment_variables(PAGES)
