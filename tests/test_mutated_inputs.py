"""Damaged files of every kind end in a sentence or a count: a small sample, and what larger ones have found."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from configs import model as models
from qwenvl_jax.config import Config, ModelConfig, TokenizerConfig, from_config_dict
from qwenvl_jax.conversion import bin_files, tensor_files
from qwenvl_jax.conversion.released_config import model_from_released, released_config
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tfds_folder import TfdsReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
DEEP = "[" * 100_000


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/mutated_inputs.py", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_a_sample_of_damaged_inputs_ends_in_sentences_and_counts() -> None:
    """Reproduce one of many with `python benchmarks/mutated_inputs.py --seed=12 --only=CASE`."""
    done = fuzz("--cases=210", "--seed=12", "--processes=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "210 cases of seed 12" in done.stdout and ": 0 wrong" in done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [Record(f"r{k}", "text", "tests", "en", "CC0-1.0", (), {"text": "a dog"}) for k in range(4)]
    write_records(tmp_path / "records", {"train": records}, name="records")
    return tmp_path / "records"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(splits=[]),
        lambda manifest: manifest["splits"].update(train=None),
        lambda manifest: manifest["splits"]["train"].pop("shards"),
        lambda manifest: manifest["splits"]["train"].pop("tasks"),
        lambda manifest: manifest["splits"]["train"].update(records=-4),
        lambda manifest: manifest["splits"]["train"].update(shards=["records"]),
        lambda manifest: manifest["splits"]["train"]["shards"][0].update(file=None),
        lambda manifest: manifest["splits"]["train"]["shards"][0].update(file="../records"),
        lambda manifest: manifest["splits"]["train"]["shards"][0].update(records=10**30),
        lambda manifest: manifest["splits"]["train"]["shards"][0].update(bytes=True),
    ],
)
def test_a_manifest_of_another_form_is_damaged(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged; copy it or build"):
        RecordReader(folder)


def test_json_nested_too_deeply_is_none(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(DEEP)
    with pytest.raises(UserError, match="not valid JSON"):
        artifacts.read_json(tmp_path / "deep.json")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", DEEP, "\udcff", '{"splits": 3}', '{"fileFormat": "null"}', '{"verion": "1.0.0"}'])
def test_what_tfds_keeps_may_be_damaged(tmp_path: Path, folder: Path, name: str, text: str) -> None:
    (tmp_path / "records-of-tfds" / "records").mkdir(parents=True)
    where = tmp_path / "records-of-tfds" / "records" / "1.0.0"
    folder.rename(where)
    (where / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=r"tfds:records:1\.0\.0@"):
        TfdsReader(f"tfds:records:1.0.0@{tmp_path / 'records-of-tfds'}", "text")


def test_one_damaged_record_does_not_close_a_tfds_data_set(tmp_path: Path) -> None:
    """Not even the first, which is looked at when it is opened; a shard that is missing does."""
    words = random.Random(0)
    texts = [words.randbytes(300).hex() for _ in range(4)]  # which no compression hides
    records = [Record(f"r{k}", "text", "tests", "en", "CC0-1.0", (), {"text": text}) for k, text in enumerate(texts)]
    where = tmp_path / "records" / "1.0.0"
    write_records(where, {"train": records}, name="records")
    [shard] = where.glob("*array_record*")
    payload = bytearray(shard.read_bytes())
    payload[next(k for k in range(300, 2000) if payload[k])] ^= 1
    shard.write_bytes(payload)
    reader = TfdsReader(f"tfds:records:1.0.0@{tmp_path}", "text")
    assert reader[1] == records[1]
    with pytest.raises(UserError, match=r"record 0: .*damaged"):
        reader[0]
    shard.unlink()
    with pytest.raises(UserError, match="is missing although"):
        TfdsReader(f"tfds:records:1.0.0@{tmp_path}", "text")


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [["model"]]])
def test_a_group_of_the_config_that_is_none(value: Any) -> None:
    with pytest.raises(UserError, match="must be a group of keys"):
        from_config_dict(Config, value)
    with pytest.raises(UserError, match=r"config\.vit must be a group of keys"):
        from_config_dict(ModelConfig, {**models.tiny().to_dict(), "vit": value})


@pytest.mark.parametrize("key", [3, None, 2.5, ("a",), "widht"])
def test_a_key_of_the_config_that_is_none(key: Any) -> None:
    with pytest.raises(UserError, match="config has no key"):
        from_config_dict(ModelConfig, {**models.tiny().to_dict(), key: 1})


SHAPES = [
    json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
    for shape, offsets in (([[1, 2]], [0, 8]), ([-1, -2], [0, 8]), ([2], [-8, 0]), ([2.0], [0, 8]), ([2], ["0", 8]))
]


@pytest.mark.parametrize("header", ["[]", "3", "null", '"text"', DEEP, '{"a": []}', '{"a": {"dtype": []}}', *SHAPES])
def test_a_safetensors_header_of_another_form(tmp_path: Path, header: str) -> None:
    path = epath.Path(tmp_path / "x.safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(64))
    with pytest.raises(UserError, match=r"is not a safetensors file|the header of .* is damaged"):
        tensor_files.read_header(path)


@pytest.mark.parametrize("change", [{"heads": [1]}, {"mlp_ratio": float("inf")}, {"layers": "2"}, {"width": None}])
def test_a_release_whose_config_has_values_of_another_kind(change: dict[str, Any]) -> None:
    model = from_config_dict(ModelConfig, models.tiny().to_dict())
    content = released_config(model, image_size=56, image_start_id=0, dtype="float32")
    assert dataclasses.replace(model_from_released(content, "c"), name=model.name) == model
    with pytest.raises(UserError, match=r"c has a value of the wrong kind|must be"):
        model_from_released({**content, "visual": {**content["visual"], **change}}, "c")


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_sentencepiece_model_that_is_none(tmp_path: Path, cut: int) -> None:
    """An empty file once ended the process."""
    path = tmp_path / "x.model"
    train_sentencepiece(["a dog and a bird", "two cats"] * 20, 330, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        load_tokenizer(TokenizerConfig("sentencepiece", str(path)))


@pytest.mark.parametrize("pickled", [b"\x80\x02.", b"\x80\x02}q\x00", b"h\x07.", b"\x80\x02]a.", b"(u."])
def test_a_checkpoint_of_pytorch_whose_pickle_is_damaged(tmp_path: Path, pickled: bytes) -> None:
    """It runs out of what it wants to take from its stack, for one."""
    good, bad = tmp_path / "good.bin", tmp_path / "bad.bin"
    bin_files.write_shard(epath.Path(good), {"a": np.zeros(3, np.float32)})
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(UserError, match=r"bad\.bin "):
        bin_files.read_header(epath.Path(bad))


@pytest.mark.parametrize("at", [4, 6, 8, 30])  # version, flags, compression and name of the first file in a zip
def test_a_damaged_index_of_a_shard_is_made_anew(tmp_path: Path, at: int) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, payload in (("a.jpg", b"picture"), ("a.txt", b"a dog")):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    expected = TarReader(tmp_path / "x.tar")[0]
    [kept] = tmp_path.glob(".x.tar*")
    whole = kept.read_bytes()
    for place in (whole.index(b"PK\x03\x04") + at, whole.index(b"PK\x01\x02") + at + 2):
        kept.write_bytes(whole[:place] + b"\x6d" + whole[place + 1 :])
        assert TarReader(tmp_path / "x.tar")[0] == expected
