"""What surrounds the code agrees with it: versions, requirements, the help of the Makefile, the workflow."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
# Files of one environment over another; their versions differ on purpose.
OVERLAYS = {"requirements-convert-newest.txt"}


def project() -> dict[str, str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(path: Path) -> dict[str, str]:
    """The line of each package in a requirements file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {re.split(r"[\[=]", line)[0]: line for line in lines}


def test_the_version_is_the_same_everywhere() -> None:
    version = project()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_package_in_several_requirements_has_one_pin_and_one_reason() -> None:
    first: dict[str, str] = {}
    for path in REQUIREMENTS:
        if path.name in OVERLAYS:
            continue
        for name, line in pins(path).items():
            if "[" in line:  # `jax[tpu]` has another reason than `jax`
                continue
            assert first.setdefault(name, line) == line, f"{path.name}: {name}"


def test_jax_has_one_version() -> None:
    lines = [line for path in REQUIREMENTS if (line := pins(path).get("jax"))]
    versions = {line.split()[0].split("==")[1] for line in lines}
    assert len(versions) == 1, versions


def test_every_requirement_says_why() -> None:
    lines = [line for path in REQUIREMENTS for line in pins(path).values()]
    assert [line for line in lines if not re.fullmatch(r"\S+==\S+ +# .+", line)] == []


def test_pre_commit_runs_the_pinned_linters() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    revisions = dict(re.findall(r"/([\w-]+)\n    rev: v(\S+)", text))
    pinned = pins(ROOT / "requirements-test.txt")
    assert set(revisions) == {"ruff-pre-commit", "codespell"}
    for name, revision in revisions.items():
        package = name.removesuffix("-pre-commit")
        assert pinned[package].split()[0] == f"{package}=={revision}"


def test_make_help_shows_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
    make = ["make", "--no-print-directory", "help"]  # Run by `make test`, an inner make would name its directory too.
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony


def test_commands_of_make_keep_compiled_modules_and_ask_for_huge_pages() -> None:
    make = ["make", "--no-print-directory", "--eval=show: ; @env", "show"]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # many container images set it
    variables.pop("GLIBC_TUNABLES", None)
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True, env=variables).stdout
    assert "PYTHONDONTWRITEBYTECODE" not in shown
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in shown.splitlines()


def test_continuous_integration_is_one_command() -> None:
    workflow = (ROOT / ".github/workflows/ci.yaml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_packages_are_marked_as_typed() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tables["package-data"]["*"] == ["py.typed"]
    for pattern in tables["packages"]["find"]["include"]:
        assert (ROOT / pattern.rstrip("*") / "py.typed").exists()


def test_every_file_of_a_package_is_packaged() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {
        file
        for package, patterns in tables["package-data"].items()
        if package != "*"
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    folders = [ROOT / pattern.rstrip("*") for pattern in tables["packages"]["find"]["include"]]
    files = [file for folder in folders for file in folder.rglob("*.*")]
    present = {file for file in files if file.is_file() and "__pycache__" not in file.parts}
    others = {file for file in present - packaged if file.suffix not in (".py", ".typed")}
    assert not others, "name them under package-data"
