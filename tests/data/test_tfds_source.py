"""TFDS data sets: ours under TFDS's names, and one that TFDS's own builder wrote."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers.tfds_folder import TfdsReader
from qwenvl_jax.data.record_format import tfds_features
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import make_record
from tests.data.source_files import bad_images, write_tfds

RECORDS = [make_record("dialogue", k) for k in range(11)]


class Talks(tfds.core.GeneratorBasedBuilder):
    """A data set as anybody would write it."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="short")]  # noqa: RUF012 (TFDS asks for it)
    FEATURES = tfds_features()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES)

    def _split_generators(self, dl_manager: object) -> dict[str, object]:
        return {"train": self._generate_examples()}

    def _generate_examples(self):  # type: ignore[no-untyped-def]
        for k, record in enumerate(RECORDS):
            fields = {name: getattr(record, name) for name in ("id", "task", "source", "language", "license")}
            images = [io.BytesIO(image) for image in record.images]
            yield k, {**fields, "content": json.dumps(record.content), "images": images}


class Other(Talks):
    """The same with other features."""

    FEATURES = tfds.features.FeaturesDict({**{k: v for k, v in tfds_features().items() if k != "license"}})

    def _generate_examples(self):  # type: ignore[no-untyped-def]
        for k, fields in super()._generate_examples():
            yield k, {name: value for name, value in fields.items() if name != "license"}


def test_a_data_set_that_tfds_wrote(tmp_path: Path) -> None:
    Talks(config="short", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for name in ("talks/short:1.2.0", "talks/short"):
        reader = TfdsReader(f"tfds:{name}@{tmp_path}", "dialogue")
        found = {reader[k].id: reader[k] for k in range(len(reader))}  # TFDS shuffles what it writes
        assert found == {record.id: record for record in RECORDS}
    Other(config="short", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match=r"has the features content, id, .* needs those of a record folder: id, task"):
        TfdsReader(f"tfds:other/short@{tmp_path}", "dialogue")


def test_record_folders_are_tfds_data_sets(tmp_path: Path) -> None:
    name = write_tfds(tmp_path, RECORDS)
    reader = TfdsReader(name, "dialogue")
    assert [reader[k] for k in range(len(reader))] == RECORDS
    with pytest.raises(IndexError):
        reader[11]
    assert len(TfdsReader(f"tfds:small@{tmp_path}", "dialogue")) == 11


def test_mistakes(tmp_path: Path) -> None:
    name = write_tfds(tmp_path, RECORDS)
    for wrong in ("tfds:", "tfds:small:1", "tfds:a:b/c", "tfds:huggingface:x", "tfds:../small"):
        with pytest.raises(UserError, match="is not of the form tfds:NAME"):
            TfdsReader(wrong, "dialogue")
    for wrong in (f"tfds:none@{tmp_path}", f"tfds:small:2.0.0@{tmp_path}", f"tfds:small@{tmp_path}/none"):
        with pytest.raises(UserError, match="is not there"):
            TfdsReader(wrong, "dialogue")
    with pytest.raises(UserError, match="has no split 'trian', only train; did you mean 'train'"):
        TfdsReader(name, "dialogue", "trian")
    with pytest.raises(UserError, match="record 0: it is of task 'dialogue', but the source is for 'vqa'"):
        TfdsReader(name, "vqa")
    info = tmp_path / "small" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="is not stored as ArrayRecord"):
        TfdsReader(name, "dialogue")


def test_bad_images_are_left_to_the_decoder(tmp_path: Path) -> None:
    record = make_record("caption", 0)
    reader = TfdsReader(
        write_tfds(tmp_path, [dataclasses.replace(record, images=(image,)) for image in bad_images().values()]),
        "caption",
    )
    for k in range(len(reader)):
        with pytest.raises(UserError, match="image"):
            decode_image(reader[k].images[0])


def test_reading_imports_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from qwenvl_jax.data.readers.tfds_folder import TfdsReader; "
        "TfdsReader(sys.argv[1], 'dialogue')[3]; "
        "print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, write_tfds(tmp_path, RECORDS)]
    root = Path(__file__).parents[2]
    assert subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout.strip() == "False"
