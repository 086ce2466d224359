"""`requirements.txt` alone starts a full-size stage: what training imports, and the vocabulary of its configs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

from configs import stage1_pretrain
from qwenvl_jax.config import TokenizerConfig, from_config_dict
from qwenvl_jax.data.tokenizer import load_tokenizer
from tests import test_architecture

ROOT = Path(__file__).parents[2]
OPTIONAL = {"numba", "simplejpeg", "gcsfs"}  # used where they are installed (-tpu, -gpu), or for gs://


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(path: Path) -> set[str]:
    """The distributions that a requirements file names, and all that these need."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    waiting = [Requirement(line) for line in lines if line]
    installed: set[str] = set()
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = normal(requirement.name)
        try:
            needed = [Requirement(need) for need in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        installed.add(name)
        for extra in {"", *requirement.extras} - {extra for other, extra in done if other == name}:
            done.add((name, extra))
            waiting += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return installed


def test_everything_that_training_imports_is_installed_by_requirements_txt() -> None:
    owners = importlib.metadata.packages_distributions()
    names = {name.split(".")[0] for name in test_architecture.reachable(ROOT / "qwenvl_jax" / "train.py")}
    ours = {*test_architecture.PACKAGES, *sys.stdlib_module_names, "", *OPTIONAL}
    installed = installed_by(ROOT / "requirements.txt")
    missing = {
        name for name in names - ours if name in owners and not {normal(owner) for owner in owners[name]} & installed
    }
    assert {"jax", "flax", "orbax", "tiktoken"} <= names
    assert not missing, f"training imports {missing}, which requirements.txt does not install"


def test_the_vocabulary_of_the_full_size_stages_is_installed_by_requirements_txt() -> None:
    config = from_config_dict(TokenizerConfig, stage1_pretrain.get_config().tokenizer.to_dict())
    assert (config.kind, config.path) == ("qwen", "")
    assert load_tokenizer(config).vocab_size > 151_643
    spec = importlib.util.find_spec("dashscope")
    assert spec and "dashscope" in installed_by(ROOT / "requirements.txt")
