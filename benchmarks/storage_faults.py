"""Injects faults into an object store while records, tars, JSON, TFDS, vocabularies and large files come and go.

    python -m benchmarks.storage_faults [--faults=200] [--seed=0] [--patience=24]

A fake-gcs-server runs on the loopback, a proxy before it spoils requests at random places: 408, 429, 500, 502, 503,
504, a reset connection, an answer that is lost after the request was carried out, silence, a body that is cut short.
First every job runs under faults that end, again and again with other seeds, until so many have been injected: its
result must equal the undisturbed one to the byte. Then every job meets each fault without an end: it must end with
one sentence. Prints one table of each.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qwenvl_jax.config import SourceConfig, TokenizerConfig
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError
from tests.data.record_samples import encoded_image, make_record
from tests.data.source_files import write_jsonl, write_tar, write_tfds
from tests.support.faulty_gcs import KINDS, between, told
from tests.support.gcs_server import environment, make_bucket, serve

_LARGE = bytes(range(256)) * (40 << 12)  # 40 MiB: two parts of an upload
_RATE = 0.15
_ENDLESS_PATIENCE = 2.0


def prepare(root: Path) -> None:
    """The files that the jobs read, on a disk."""
    captions = [make_record("caption", k) for k in range(24)]
    write_records(root / "records", {"train": captions}, name="demo", records_per_shard=6)
    write_tfds(root / "tfds", captions)
    for folder in ("laion", "json/images"):
        (root / folder).mkdir(parents=True)
    for shard in range(3):
        numbers = range(8 * shard, 8 * shard + 8)
        members = [(f"{k:05d}.{s}", p) for k in numbers for s, p in (("png", encoded_image(k)), ("txt", b"a dog"))]
        write_tar(root / "laion" / f"{shard:05d}.tar", members)
    for k in range(12):
        (root / "json" / "images" / f"{k}.png").write_bytes(encoded_image(k))
    write_jsonl(root / "json" / "x.jsonl", [{"image": f"images/{k}.png", "caption": "a dog"} for k in range(12)])
    train_sentencepiece(["dog cat hill bird"] * 400, 400, root / "vocabulary.model")
    (root / "large.bin").write_bytes(_LARGE)


def digest(root: str) -> str:
    """Of the names and bytes of all files below a folder."""
    found = hashlib.sha256()
    for name in storage.files_below(root):
        found.update(f"{name}:".encode() + hashlib.sha256(storage.read_bytes(f"{root}/{name}")).digest())
    return found.hexdigest()


def jobs() -> dict[str, Callable[[str, str], object]]:
    """By name: what takes a folder to read from and one to write to, and gives what must not depend on faults."""

    def source(path: str) -> Callable[[str, str], object]:
        def read(root: str, out: str) -> object:
            opened = open_source(SourceConfig("x", "caption", path.format(root), 1.0))
            return [opened[index] for index in range(len(opened))]

        return read

    def write(root: str, out: str) -> object:
        records = [make_record("caption", k) for k in range(24)]
        return write_records(out, {"train": records}, name="demo", records_per_shard=6)

    def vocabulary(root: str, out: str) -> object:
        return load_tokenizer(TokenizerConfig("sentencepiece", f"{root}/vocabulary.model")).digest

    def upload(root: str, out: str) -> object:
        with storage.local_output(f"{out}/large.bin") as file:
            file.write_bytes(_LARGE)
        return storage.size(f"{out}/large.bin")

    def download(root: str, out: str) -> object:
        with storage.local_copy(f"{root}/large.bin") as file:
            return hashlib.sha256(file.read_bytes()).hexdigest()

    return {
        "records": source("{}/records"),
        "records, verified": lambda root, out: len(RecordReader(f"{root}/records", verify=True)),
        "manifest": lambda root, out: read_manifest(f"{root}/records"),
        "tars": source("{}/laion/*.tar"),
        "JSON and images": source("{}/json/x.jsonl"),
        "TFDS": source("tfds:small:1.0.0@{}/tfds"),
        "vocabulary": vocabulary,
        "write records": write,
        "write 40 MiB": upload,
        "read 40 MiB": download,
    }


def forget_indexes(root: str) -> None:
    """Removes what an earlier run has kept beside the tars, so that every run makes it."""
    for name in storage.names(f"{root}/laion"):
        if name.startswith("."):
            storage.remove(f"{root}/laion/{name}")


def under_faults(upstream: str, root: str, wanted: int, first_seed: int) -> int:
    """The first table; returns how many results differ from the undisturbed one."""
    expected: dict[str, object] = {}
    written: dict[str, str] = {}
    for name, job in jobs().items():
        forget_indexes(root)
        expected[name] = job(root, f"{root}-out/expected/{name}")
        written[name] = digest(f"{root}-out/expected/{name}")
    total = 0
    differing = 0
    seed = first_seed
    faults: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in expected}
    runs, requests, longest = (collections.Counter[str]() for _ in range(3))
    while total < wanted:
        for name, job in jobs().items():
            forget_indexes(root)
            out = f"{root}-out/{seed}/{name}"
            started = time.monotonic()
            with between(upstream, rate=_RATE, seed=f"{seed}-{name}") as url:
                found = job(root, out)
                said = told(url)
            longest[name] = max(longest[name], round(time.monotonic() - started))
            differing += found != expected[name] or digest(out) != written[name]
            runs[name] += 1
            requests[name] += said["requests"]
            faults[name].update(said["faults"])
            total += sum(said["faults"].values())
        seed += 1
    print(f"{'job':18} runs requests faults longest  " + " ".join(f"{kind:>5}" for kind in KINDS))
    for name, counted in faults.items():
        kinds = " ".join(f"{counted[kind]:5}" for kind in KINDS)
        print(f"{name:18} {runs[name]:4} {requests[name]:8} {counted.total():6} {longest[name]:5} s  {kinds}")
    print(f"{total} faults, {runs.total()} runs, {differing} results that differ")
    return differing


def without_end(upstream: str, root: str) -> int:
    """The second table; returns how many jobs did not end with one sentence."""
    os.environ["QWENVL_STORAGE_PATIENCE"] = str(_ENDLESS_PATIENCE)
    wrong = 0
    print(f"\nfaults without an end, patience {_ENDLESS_PATIENCE:g} s: seconds to the sentence")
    print(f"{'job':18} " + " ".join(f"{kind:>5}" for kind in KINDS))
    for name, job in jobs().items():
        cells = []
        for kind in KINDS:
            started = time.monotonic()
            with between(upstream, rate=1, kinds=kind):
                try:
                    job(root, f"{root}-out/endless")
                    ended = ""
                except StorageError as error:
                    ended = str(error)
            good = ended.count("\n") == 0 and "could not be reached" in ended
            wrong += not good
            cells.append(f"{time.monotonic() - started:5.1f}" if good else "WRONG")
        print(f"{name:18} {' '.join(cells)}", flush=True)
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=24.0, help="seconds, while faults end")
    arguments = parser.parse_args(argv)
    os.environ["QWENVL_STORAGE_PATIENCE"] = str(arguments.patience)
    with serve() as upstream, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment(upstream))
        bucket = make_bucket(upstream, "faults")
        make_bucket(upstream, "faults-out")
        prepare(Path(folder))
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                storage.write_bytes(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())
        wrong = under_faults(upstream, bucket, arguments.faults, arguments.seed) + without_end(upstream, bucket)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
