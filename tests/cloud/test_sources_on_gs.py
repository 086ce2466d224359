"""Sources of every kind on an object store give the records that they give on a disk."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from qwenvl_jax.config import SourceConfig, TokenizerConfig
from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.readers.source import Source, open_source
from qwenvl_jax.data.readers.tar_files import TarReader, find_shards
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.record_samples import encoded_image, make_record
from tests.data.source_files import write_jsonl, write_tar, write_tfds
from tests.support.faulty_gcs import between, told

KINDS = {
    "tfds": "tfds:small:1.0.0@{root}/tfds",
    "json": "{root}/json/captions.jsonl",
    "folder of tars": "{root}/laion",
    "pattern of tars": "{root}/laion/*.tar",
    "braces": "{root}/laion/{{00000..00001}}.tar",
    "one tar": "{root}/laion/00000.tar",
    "records": "{root}/records",
}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    (root / "laion").mkdir()
    for shard in range(2):
        members = []
        for k in range(5 * shard, 5 * shard + 5):
            members += [(f"{k:05d}.png", encoded_image(k)), (f"{k:05d}.txt", f"caption {k}".encode())]
        write_tar(root / "laion" / f"{shard:05d}.tar", members)
    (root / "json" / "images").mkdir(parents=True)
    entries = []
    for k in range(5):
        (root / "json" / "images" / f"{k}.png").write_bytes(encoded_image(k))
        entries.append({"image": f"images/{k}.png", "caption": f"caption {k}"})
    write_jsonl(root / "json" / "captions.jsonl", entries)
    captions = [make_record("caption", k) for k in range(10)]
    write_records(root / "records", {"train": captions}, name="demo", records_per_shard=4)
    write_tfds(root / "tfds", captions)
    train_sentencepiece(
        [str(record.content.get("caption")) for record in captions] * 40, 400, root / "vocabulary.model"
    )
    return root


@pytest.fixture
def root(on_disk: Path, gcs: str) -> str:
    for path in sorted(on_disk.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{gcs}/{path.relative_to(on_disk)}", path.read_bytes())
    return gcs


def opened(kind: str, root: object) -> Source:
    return open_source(SourceConfig("demo", "caption", KINDS[kind].format(root=root), 1.0))


def everything(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_disk(kind: str, on_disk: Path, root: str) -> None:
    here, there = opened(kind, on_disk), opened(kind, root)
    assert everything(there) == everything(here)
    assert there.digest() == here.digest()
    again = opened(kind, root)
    assert json.loads(json.dumps(again.findings())) == again.findings()


@pytest.mark.parametrize("kind", KINDS)
def test_faults_change_nothing(kind: str, on_disk: Path, root: str, gcs_server: str) -> None:
    with between(gcs_server, rate=0.3, seed=1, kinds="503,429,reset,short") as url:
        assert everything(opened(kind, root)) == everything(opened(kind, on_disk))
        assert sum(told(url)["faults"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_does_not_end_is_never_damage(
    kind: str, root: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(kind, root)
    monkeypatch.setenv("QWENVL_STORAGE_PATIENCE", "0.2")
    with between(gcs_server, rate=1, kinds="503,reset"):
        if kind != "tfds":  # which reads a record when it is opened, and keeps its connection
            with pytest.raises(StorageError, match="could not be reached"):
                source[1]
        with pytest.raises(StorageError, match="could not be reached"):
            opened(kind, root)
    assert source[1]


def test_what_another_process_is_told_is_enough(root: str) -> None:
    """It opens the same without listing anything."""
    first = TarReader(f"{root}/laion/*.tar")
    second = TarReader(f"{root}/laion/*.tar", first.findings())
    assert everything(second) == everything(first) and second.digest() == first.digest()
    assert find_shards(f"{root}/lai*/*1.tar").keys() == {f"{root}/laion/00001.tar"}
    with pytest.raises(UserError, match=r"1 of 3 are missing, the first .*00002\.tar"):
        find_shards(f"{root}/laion/{{00000..00002}}.tar")
    with pytest.raises(UserError, match=r"names no \.tar file"):
        TarReader(f"{root}/coyo/*.tar")


def test_an_index_is_kept_beside_the_shard(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(TarReader(f"{root}/laion"))
    assert storage.exists(f"{root}/laion/.00000.tar.index.npz")
    monkeypatch.setattr(tar_index, "scan_shard", None)
    assert everything(TarReader(f"{root}/laion")) == expected


def test_a_shard_is_indexed_by_few_requests(gcs: str, gcs_server: str, tmp_path: Path) -> None:
    """Not one for every header and text."""
    members = [(f"{k:05d}.{kind}", b"x" * 700) for k in range(200) for kind in ("jpg", "txt")]
    storage.write_bytes(f"{gcs}/x/00000.tar", write_tar(tmp_path / "x.tar", members).read_bytes())
    with between(gcs_server, rate=0) as url:
        assert len(TarReader(f"{gcs}/x")) == 200
        assert told(url)["requests"] < 12


def test_missing_images(root: str) -> None:
    storage.remove(f"{root}/json/images/3.png")
    reader = JsonReader(f"{root}/json/captions.jsonl", "caption")
    assert reader[2].images
    with pytest.raises(UserError, match=r"line 4: the image gs://.*/images/3\.png cannot be read"):
        reader[3]


def test_images_of_a_disk_that_goes_away(tmp_path: Path) -> None:
    """A file that was missing from the start is the entry's fault; one that vanishes is the disk's."""
    (tmp_path / "a.png").write_bytes(encoded_image(0))
    entries = [{"image": name, "caption": "x"} for name in ("a.png", "b.png")]
    reader = JsonReader(write_jsonl(tmp_path / "x.jsonl", entries), "caption", 0.9)
    assert reader.findings() == [str(tmp_path / "b.png")]
    other = JsonReader(tmp_path / "x.jsonl", "caption", 0.9, reader.findings())
    (tmp_path / "a.png").unlink()
    for each in (reader, other):
        with pytest.raises(UserError, match=r"b\.png cannot be read"):
            each[1]
        with pytest.raises(StorageError, match=r"a\.png was there .* and is gone"):
            each[0]


def test_vocabularies(root: str, on_disk: Path, gcs: str) -> None:
    text = "dog cat hill bird 一只猫"
    ranks = b"".join(b"%s %d\n" % (base64.b64encode(bytes([k])), k) for k in range(256))
    (on_disk / "tiny.tiktoken").write_bytes(ranks)
    storage.write_bytes(f"{root}/tiny.tiktoken", ranks)
    for kind, name in (("sentencepiece", "vocabulary.model"), ("qwen", "tiny.tiktoken")):
        there = load_tokenizer(TokenizerConfig(kind, f"{root}/{name}"))
        here = load_tokenizer(TokenizerConfig(kind, str(on_disk / name)))
        assert there.encode(text) == here.encode(text) and there.digest == here.digest
        with pytest.raises(UserError, match=r"gs://.*/no"):
            load_tokenizer(TokenizerConfig(kind, f"{gcs}/no"))
    model = train_sentencepiece([text] * 400, 400, f"{gcs}/made/new.model")
    assert storage.size(f"{gcs}/made/new.model") > 0 and model is not None
