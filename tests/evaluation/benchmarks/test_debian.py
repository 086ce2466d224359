"""The benchmarks on pictures of Debian packages: their config, and a record of each as its builder writes it."""

from __future__ import annotations

import pytest

from configs.evaluation import debian
from data_pipelines.corpora.table import CORPORA
from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.benchmarks.registry import DEBIAN
from qwenvl_jax.evaluation.config import EvalConfig, validate


def test_the_config_asks_all_of_them() -> None:
    config = validate(from_config_dict(EvalConfig, debian.get_config()))
    assert [item.name for item in config.benchmarks] == [f"debian_{name}_test" for name in debian.FOLDERS]
    assert {item.name for item in config.benchmarks} == set(DEBIAN)
    prompts = {item.name for item in config.benchmarks if item.prompt}
    assert prompts == {"debian_captions_test", "debian_captions_zh_test"}
    released = validate(from_config_dict(EvalConfig, debian.get_config(prompts="released", kinds="maps+captions")))
    assert [(item.name, item.prompt) for item in released.benchmarks] == [
        ("debian_maps_test", ""),
        ("debian_captions_test", ""),
    ]


def test_their_corpora_and_splits_are_those_of_the_readers() -> None:
    for benchmark in DEBIAN.values():
        assert benchmark.split in CORPORA[benchmark.corpus].splits, benchmark.name


@pytest.mark.parametrize("argument", [{"kinds": "map"}, {"prompts": "train"}, {"mesh": "v9"}])
def test_unknown_arguments_are_refused(argument: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        debian.get_config(**argument)
