"""A small vocabulary, record folders of every task and a small config."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl_jax import config as schema
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TRAINING_TASKS
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from tests.data.record_samples import SENTENCES, make_record
from tests.data.source_files import tar_sample, write_tar


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a trained SentencePiece model."""
    path = tmp_path_factory.mktemp("vocabulary") / "tests.model"
    train_sentencepiece(SENTENCES, 600, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return load_tokenizer(schema.TokenizerConfig("sentencepiece", str(vocabulary)))


@pytest.fixture(scope="session")
def qwen() -> Tokenizer:
    return load_tokenizer(schema.TokenizerConfig("qwen", ""))


@pytest.fixture(scope="session")
def record_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One record folder per task, 23 records each (a number that divides nothing)."""
    root = tmp_path_factory.mktemp("records")
    for task in TRAINING_TASKS:
        write_records(root / task, {"train": [make_record(task, k) for k in range(23)]}, name=task, records_per_shard=9)
    return root


@pytest.fixture
def run_config(record_folders: Path, vocabulary: Path) -> schema.Config:
    """A run over all tasks: 8 rows of 160 tokens in 2 microbatches, 4 feature slots per image."""
    mixture = tuple(
        schema.SourceConfig(f"{task}_mix", task, str(record_folders / task), weight)
        for task, weight in zip(TRAINING_TASKS, (4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0), strict=True)
    )
    return schema.validate(
        schema.Config(
            model=schema.ModelConfig(
                "tests",
                schema.VitConfig(16, 1, 2, 32, 14, 2, 1e-6),
                schema.ResamplerConfig(2, 2, 1e-6),
                schema.DecoderConfig(640, 16, 1, 2, 32, 10000.0, 1e-6, 128, True, True),
            ),
            tokenizer=schema.TokenizerConfig("sentencepiece", str(vocabulary)),
            data=schema.DataConfig(mixture, 28, 160, 8, 2, 4.0, 3, 7),
            optimizer=schema.OptimizerConfig(1e-3, 1e-4, 1, 0.9, 0.98, 1e-6, 0.05, 1.0, 0.95),
            init=schema.InitConfig("", "", "", ""),
            train=schema.TrainConfig("multitask", ("decoder",), 10, 0, 1, 10, 1),
            mesh=schema.MeshConfig(-1, 1, 1, 1, 0),
            compute=schema.ComputeConfig("float32", "float32", "xla", "none", "none", False, 1024),
        )
    )


@pytest.fixture
def index_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for indexes of shards that cannot be kept beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwenvl_jax"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of WebDataset shards: two of 5 samples and one of 3."""
    folder = tmp_path / "laion"
    folder.mkdir()
    for number, keys in enumerate((range(5), range(5, 10), range(10, 13))):
        write_tar(folder / f"{number:05d}.tar", [member for k in keys for member in tar_sample(k)])
    return folder
