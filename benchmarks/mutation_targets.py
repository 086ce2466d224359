"""What `mutated_inputs` damages: a small good input of every kind, and the reader that a person's files go through.

Every target writes a damaged input and reads it as a run would. Two things may happen besides success: a `UserError`
(from opening, from a command's file) or a record that is counted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from configs import stage2_multitask
from qwenvl_jax import config as config_lib
from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.config import Config, SourceConfig, TokenizerConfig, from_config_dict, load_config, to_dict
from qwenvl_jax.conversion import bin_files, from_torch, tensor_files
from qwenvl_jax.conversion.released_config import released_config
from qwenvl_jax.data.images.pool import decode_all
from qwenvl_jax.data.mixture_reader import MixtureReader
from qwenvl_jax.data.readers.record_folder import read_manifest
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tar_files import checked_entries, joined_path
from qwenvl_jax.data.readers.tar_indexing import index_all
from qwenvl_jax.data.readers.tar_joined import join_indexes
from qwenvl_jax.data.readers.tar_paths import find_shards
from qwenvl_jax.data.record_format import FEATURES, encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece

QUERIES, SIDE = 4, 28
_WRITTEN = re.compile(rb"[^\0](?:.{0,4000}?[^\0])*", re.DOTALL)  # shards are filled up with zeros to 64 KiB
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
WORDS = ["A brown dog runs over the hill.", "Two cats, 12 birds", "一只猫在桌子上。", "Where is the red car?"]

Rng = random.Random
Target = Callable[[Rng], str]


def encoded(form: str, seed: int = 0) -> bytes:
    """A picture of 28 x 20 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, SIDE, 3), np.uint8)
    payload = io.BytesIO()
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {"progressive": bool(seed % 2)} if form == "JPEG" else {}
    if form in ("GIF", "PNG", "WEBP") and seed % 2:
        options = {"save_all": True, "append_images": [image.rotate(180)]}
    image.save(payload, form, **options)
    return payload.getvalue()


def contents() -> dict[str, dict[str, Any]]:
    """One content of every task."""
    size = {"width": SIDE, "height": 20}
    quad = [[1, 1], [9, 1], [9, 5], [1, 5]]
    turns = [
        {"role": "user", "parts": [{"image": 0}, {"text": WORDS[3]}]},
        {
            "role": "assistant",
            "parts": [{"ref": "The car", "boxes": [[1, 2, 9, 9]]}, {"text": " here"}, {"quads": [quad]}],
        },
    ]
    return {
        "caption": {"caption": WORDS[0]},
        "vqa": {"question": WORDS[3], "answer": "left", "answers": ["left"] * 3},
        "grounding": {"segments": [{"text": "a dog", "boxes": [[1, 2, 20, 19]]}, {"text": " runs"}], **size},
        "ref_grounding": {"phrase": "a dog", "box": [1, 2, 20, 19.5], **size},
        "grounded_caption": {"box": [0, 0, SIDE, 20], "description": "brown", "ref": "This", **size},
        "ocr": {"lines": [{"text": "STOP", "quad": quad}], **size},
        "text": {"text": WORDS[1]},
        "dialogue": {"system": "", "turns": turns, "sizes": [[SIDE, 20]]},
    }


def record_of(task: str, content: Any, k: int = 0) -> Record:
    images = () if task == "text" else (encoded(FORMS[k % 5], k),)
    return Record(f"{task}{k}", task, "mutations", "en", "CC0-1.0", images, content)


class Targets:
    """All kinds of input in a folder of their own.

    Args:
      folder: empty.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        train_sentencepiece([*WORDS, "Generate the caption in English: Answer: OCR with grounding: Picture 1"] * 9, 420,
                            folder / "good.model")  # fmt: skip
        self._tokenizer = load_tokenizer(TokenizerConfig("sentencepiece", str(folder / "good.model")))
        stage = stage2_multitask.get_config().to_dict()
        self._config = from_config_dict(Config, stage)
        (folder / "images").mkdir()
        for k, form in enumerate(FORMS):
            (folder / "images" / f"{k}.jpg").write_bytes(encoded(form, k))
        self._contents = contents()
        for task, content in self._contents.items():
            records = [record_of(task, content, k) for k in range(4)]
            write_records(folder / "good" / task, {"train": records}, name="good", records_per_shard=3)
        tensors = {f"layer.{k}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) for k in range(3)}
        entries = [tensor_files.Entry(name, array.shape) for name, array in tensors.items()]
        tensor_files.write_shard(epath.Path(folder / "good.safetensors"), entries, "float32", tensors.values())
        bin_files.write_shard(epath.Path(folder / "good.bin"), tensors)
        (folder / "run").mkdir()
        lineage.write(epath.Path(folder / "run"), self._config, dict.fromkeys(("vit", "resampler", "decoder")))
        (folder / "release").mkdir()
        self._released = released_config(self._config.model, image_size=448, image_start_id=151857, dtype="bfloat16")
        self.kinds: dict[str, Target] = {
            "shard": self.shard,
            "record": self.record,
            "content": self.content,
            "manifest": self.manifest,
            "json": self.json,
            "conversation": self.conversation,
            "tar": self.tar,
            "tar index": self.tar_index,
            "joined index": self.joined_index,
            "tfds": self.tfds,
            "safetensors": self.safetensors,
            "bin": self.bin,
            "tiktoken": self.tiktoken,
            "sentencepiece": self.sentencepiece,
            "config": self.config,
            "run": self.run,
            "release": self.release,
        }
        for form in FORMS:
            self.kinds[f"picture {form}"] = functools.partial(self.picture, form)

    # Sources of records.

    def _read(self, path: Path | str, task: str) -> str:
        """Opens a source and reads all of it as a run does."""
        source = SourceConfig("mutated", task, str(path), 1.0)
        return self._through(open_source(source), task)

    def _through(self, reader: Any, task: str) -> str:
        data = dataclasses.replace(self._config.data, mixture=(SourceConfig("mutated", task, "", 1.0),))
        mixture_reader = MixtureReader(data, [reader], self._tokenizer, QUERIES)
        counted = 0
        for index in range(len(reader)):
            drawn = mixture_reader.tokenize(mixture_reader.read(0, index))
            counted += drawn.unreadable
            for example in drawn.examples:
                pixels = np.zeros((len(example.images), SIDE, SIDE, 3), np.uint8)
                counted += bool(decode_all(example.images, example.stated_sizes, pixels))
        return "counted" if counted else "read"

    def _fresh(self, rng: Rng) -> tuple[Path, str]:
        task = rng.choice(list(self._contents))
        folder = self._folder / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder / "good" / task, folder)
        return folder, task

    def shard(self, rng: Rng) -> str:
        """A shard of a record folder; its size in the manifest is put right, or its reader would look no further."""
        folder, task = self._fresh(rng)
        shard = rng.choice(sorted(folder.glob("*array_record*")))
        payload = shard.read_bytes()
        start, stop = rng.choice([match.span() for match in _WRITTEN.finditer(payload)])
        shard.write_bytes(payload[:start] + mutations.damaged_bytes(payload[start:stop], rng) + payload[stop:])
        if rng.random() < 0.9:
            _amend(folder)
        return self._read(folder, task)

    def record(self, rng: Rng) -> str:
        """The bytes of one record, in a shard that is whole."""
        task = rng.choice(list(self._contents))
        payload = mutations.damaged_bytes(encode_record(record_of(task, self._contents[task], rng.randrange(5))), rng)
        return self._stored(payload, task)

    def content(self, rng: Rng) -> str:
        """What a record says, which no check has seen."""
        from tensorflow_datasets.proto import tf_example_pb2

        task = rng.choice(list(self._contents))
        example = tf_example_pb2.Example.FromString(encode_record(record_of(task, self._contents[task])))
        fields = example.features.feature
        fields["content"].bytes_list.value[0] = mutations.damaged_json(self._contents[task], rng)
        if rng.random() < 0.1:
            del fields[rng.choice(FEATURES)].bytes_list.value[:]
        return self._stored(example.SerializeToString(), task)

    def _stored(self, payload: bytes, task: str) -> str:
        folder = self._folder / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder / "good" / task, folder)
        shard = max(folder.glob("*array_record*"))
        writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1,zstd:1")
        writer.write(payload)
        writer.close()
        _amend(folder)
        return self._read(folder, task)

    def manifest(self, rng: Rng) -> str:
        folder, task = self._fresh(rng)
        path = folder / "manifest.json"
        path.write_bytes(mutations.damaged_json(json.loads(path.read_text()), rng))
        read_manifest(folder)
        return self._read(folder, task)

    def tfds(self, rng: Rng) -> str:
        """What TFDS says of a data set, beside whole shards."""
        folder, task = self._fresh(rng)
        root = self._folder / "tfds"
        shutil.rmtree(root, ignore_errors=True)
        (root / "good").mkdir(parents=True)
        folder.rename(root / "good" / "1.0.0")
        path = root / "good" / "1.0.0" / rng.choice(("dataset_info.json", "features.json", "manifest.json"))
        path.write_bytes(mutations.damaged_json(json.loads(path.read_text()), rng))
        return self._read(f"tfds:good:1.0.0@{root}", task)

    def json(self, rng: Rng) -> str:
        """One record's fields per line, or a list of them."""
        task = rng.choice(list(self._contents))
        images = {} if task == "text" else {"image": f"images/{rng.randrange(5)}.jpg"}
        return self._lines({**images, **self._contents[task]}, task, rng)

    def conversation(self, rng: Rng) -> str:
        said = f"Picture 1: <img>images/{rng.randrange(5)}.jpg</img>\nWhere is <ref>the dog</ref>?"
        turns = [("user", said), ("assistant", "<ref>It</ref><box>(1,2),(300,400)</box>"), ("user", "And?"),
                 ("assistant", "<quad>(1,1),(9,1),(9,5),(1,5)</quad> there")]  # fmt: skip
        conversations = [{"from": role, "value": text} for role, text in turns]
        entry = {"id": "a", "conversations": conversations}
        if rng.random() < 0.5:
            turn = rng.choice(conversations)
            turn["value"] = mutations.damaged_bytes(turn["value"].encode(), rng).decode("utf-8", "replace")
        return self._lines(entry, "dialogue", rng)

    def _lines(self, entry: dict[str, Any], task: str, rng: Rng) -> str:
        listed = rng.random() < 0.4
        good, bad = json.dumps(entry).encode(), mutations.damaged_json(entry, rng)
        path = self._folder / ("now.json" if listed else "now.jsonl")
        text = b"[" + b",\n".join([good, bad, good]) + b"]" if listed else b"\n".join([good, bad, good])
        path.write_bytes(mutations.damaged_bytes(text, rng) if rng.random() < 0.3 else text)
        reader = open_source(SourceConfig("mutated", task, str(path), 1.0), max_corrupt_share=0.99)
        return self._through(reader, task)

    def _tar(self, rng: Rng) -> Path:
        path = self._folder / "now.tar"
        for old in self._folder.glob(".now.tar*"):
            old.unlink()
        members = []
        for k in range(4):
            members += [(f"{k}.jpg", encoded(FORMS[k], k)), (f"{k}.txt", WORDS[k].encode())]
            members += [(f"{k}.json", json.dumps({"caption": WORDS[k], "language": "en"}).encode())]
        form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(path, "w", format=form) as to:
            for name, payload in members:
                member = tarfile.TarInfo(
                    f"{'猫' * 60}/{name}" if rng.random() < 0.1 and form != tarfile.USTAR_FORMAT else name
                )
                member.size = len(payload)
                to.addfile(member, io.BytesIO(payload))
        return path

    def tar(self, rng: Rng) -> str:
        path = self._tar(rng)
        path.write_bytes(mutations.damaged_bytes(path.read_bytes(), rng))
        return self._read(path, "caption")

    def tar_index(self, rng: Rng) -> str:
        """The index that an earlier run kept beside a shard."""
        path = self._tar(rng)
        self._read(path, "caption")
        [index] = self._folder.glob(".now.tar*")
        index.write_bytes(mutations.damaged_bytes(index.read_bytes(), rng))
        return self._read(path, "caption")

    def joined_index(self, rng: Rng) -> str:
        """The joined index of a folder with one shard."""
        folder = self._folder / "joined"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._tar(rng).rename(folder / "a.tar")
        index_all(find_shards(folder), "", 1)
        shards = checked_entries(find_shards(folder))
        joined = joined_path(str(folder), "*.tar", "")
        join_indexes(joined, str(folder), shards, "")
        joined.write_bytes(mutations.damaged_bytes(joined.read_bytes(), rng))
        return self._read(folder, "caption")

    # Pictures.

    def picture(self, form: str, rng: Rng) -> str:
        payload = mutations.damaged_bytes(encoded(form, rng.randrange(8)), rng)
        pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        wrong = [decode_all([payload], [None], pixels, decoder) for decoder in ("stretch", "draft")]
        return "counted" if any(wrong) else "read"

    # Files of releases, runs and vocabularies.

    def safetensors(self, rng: Rng) -> str:
        path = epath.Path(self._folder / "now.safetensors")
        payload = (self._folder / "good.safetensors").read_bytes()
        if rng.random() < 0.5:
            size = int.from_bytes(payload[:8], "little")
            header = mutations.damaged_json(json.loads(payload[8 : 8 + size]), rng)
            payload = len(header).to_bytes(8, "little") + header + payload[8 + size :]
        else:
            payload = mutations.damaged_bytes(payload, rng)
        path.write_bytes(payload)
        for stored in tensor_files.read_header(path).values():
            tensor_files.read_tensor(stored)
        return "read"

    def bin(self, rng: Rng) -> str:
        path = epath.Path(self._folder / "now.bin")
        path.write_bytes(mutations.damaged_bytes((self._folder / "good.bin").read_bytes(), rng))
        for stored in bin_files.read_header(path).values():
            tensor_files.read_tensor(stored)
        return "read"

    def tiktoken(self, rng: Rng) -> str:
        import base64

        tokens = [bytes([value]) for value in range(256)] + [b"ab", b"the", b" dog"]
        lines = "\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
        (self._folder / "now.tiktoken").write_bytes(mutations.damaged_bytes(lines.encode(), rng))
        return self._vocabulary("qwen", "now.tiktoken")

    def sentencepiece(self, rng: Rng) -> str:
        payload = (self._folder / "good.model").read_bytes()
        (self._folder / "now.model").write_bytes(mutations.damaged_bytes(payload, rng))
        return self._vocabulary("sentencepiece", "now.model")

    def _vocabulary(self, kind: str, name: str) -> str:
        tokenizer = load_tokenizer(TokenizerConfig(kind, str(self._folder / name)))
        for text in (*WORDS, "", "\0"):
            tokenizer.decode(tokenizer.encode(text))
        return "read"

    def config(self, rng: Rng) -> str:
        load_config(mutations.damaged_value(to_dict(self._config), rng))
        return "read"

    def run(self, rng: Rng) -> str:
        """The texts that a run keeps of itself."""
        folder = self._folder / "now-run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._folder / "run", folder)
        path = rng.choice(sorted(folder.glob("*.json")))
        path.write_bytes(mutations.damaged_json(json.loads(path.read_text()), rng))
        lineage.read_config(folder)
        lineage.read_lineage(folder)
        lineage.check_resumable(folder, self._config)
        return "read"

    def release(self, rng: Rng) -> str:
        """The texts of a release: of a foreign one its config, of ours also the training config and the manifest."""
        folder = self._folder / "release"
        about = {"sha256": "0" * 64, "bytes": 3, "shape": [2, 3]}
        manifest = {"component": "all", "files": {"a.py": about}, "tensors": {"a.weight": about}}
        texts = {"config.json": self._released}
        if rng.random() < 0.6:
            texts |= {from_torch.TRAINING_CONFIG: to_dict(self._config), from_torch.MANIFEST: manifest}
        bad = rng.choice(list(texts))
        shutil.rmtree(folder)
        folder.mkdir()
        for name, value in texts.items():
            text = mutations.damaged_json(value, rng) if name == bad else json.dumps(value).encode()
            (folder / name).write_bytes(text)
        config = from_torch.read_config(epath.Path(folder))
        config_lib.validate(config.model, "config.model")
        return "read"


def _amend(folder: Path) -> None:
    """Lets the manifest say how large the shards are now, as if only their contents had been damaged."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            payload = (folder / shard["file"]).read_bytes()
            shard |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    path.write_text(json.dumps(manifest))
