"""How many requests it takes to open record folders on an object store, and which process makes them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.runtime import gcs_store, storage
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import make_record
from tests.runtime.processes import Parent, joined, parents
from tests.support.faulty_gcs import between, faulty, told
from tests.support.gcs_server import environment, make_bucket

ROOT = Path(__file__).parents[2]
PAGE = 4  # objects of a page of a listing, instead of a thousand
RECORDS = 30

# Opens a source; prints its facts, the requests that this process has made until then, and the ids of its records.
OPEN = """
import json, os, sys
from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.runtime import distributed
from tests.support.faulty_gcs import told
distributed.initialize()
source = open_source(SourceConfig("a", "caption", sys.argv[1], 1.0))
requests = told(os.environ["STORAGE_EMULATOR_HOST"])["requests"]
ids = [source[index].id for index in range(len(source))]
distributed.gather(None)
print(json.dumps([[len(source), source.samples, source.digest()], requests, ids]))
"""


def write(root: str) -> None:
    """A record folder of 30 shards, and the same records for TFDS in 5."""
    records = [make_record("caption", k) for k in range(RECORDS)]
    write_records(f"{root}/demo", {"train": records}, name="demo", records_per_shard=1)
    write_records(f"{root}/tfds/small/1.0.0", {"train": records}, name="small", records_per_shard=7)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_store, "_LISTED_AT_ONCE", PAGE)
    monkeypatch.setattr(storage, "_NAMES_PER_THREAD", PAGE)


@pytest.mark.usefixtures("small_pages")
def test_a_folder_is_listed_once_per_page(gcs: str, gcs_server: str) -> None:
    write(gcs)
    names = [name for name in storage.names(f"{gcs}/demo") if "array_record" in name]
    expected = {name: size for name, size in storage.sizes(f"{gcs}/demo").items() if name in names}
    with between(gcs_server, rate=0) as url:
        assert storage.sizes_of(f"{gcs}/demo", names) == expected
        # Sixteen threads at most, with two shards each or three: a page holds four.
        assert told(url)["requests"] == 8
        assert storage.sizes_of(f"{gcs}/demo", names[20:22]) == {name: expected[name] for name in names[20:22]}
        assert told(url)["requests"] == 9
        assert storage.sizes_of(f"{gcs}/demo", []) == {}
        assert told(url)["requests"] == 9
        assert len(RecordReader(f"{gcs}/demo")) == RECORDS
        assert told(url)["requests"] == 9 + 2 + 8  # the manifest is looked for and read


@pytest.mark.usefixtures("small_pages")
def test_objects_that_no_manifest_lists_cost_nothing(gcs: str, gcs_server: str) -> None:
    write(gcs)
    names = [name for name in storage.names(f"{gcs}/demo") if "array_record" in name]
    expected = storage.sizes_of(f"{gcs}/demo", names)
    strangers = [f"{prefix}{k}" for prefix in ("a", f"{names[9]}.", f"{names[29]}.", "z") for k in range(6)]
    for name in [*strangers, *(f"{names[14]}.folder/{k}" for k in range(6))]:
        storage.write_bytes(f"{gcs}/demo/{name}", b"x")
    with between(gcs_server, rate=0) as url:
        assert storage.sizes_of(f"{gcs}/demo", names) == expected
        # The objects between the ninth and the tenth name are skipped after one page.
        assert told(url)["requests"] <= 8 + 2
    assert len(RecordReader(f"{gcs}/demo")) == RECORDS
    storage.remove(f"{gcs}/demo/{names[3]}")
    storage.remove(f"{gcs}/demo/{names[29]}")
    with pytest.raises(UserError, match=rf"{names[3]} is missing .* \(and 1 more shard\)"):
        RecordReader(f"{gcs}/demo")


@pytest.mark.usefixtures("small_pages")
def test_a_folder_is_listed_under_faults(gcs: str, gcs_server: str) -> None:
    write(gcs)
    expected = RecordReader(f"{gcs}/demo").digest()
    with between(gcs_server, rate=0.2, seed=1, kinds="429,503,reset,lost,short") as url:
        assert RecordReader(f"{gcs}/demo").digest() == expected
        assert sum(told(url)["faults"].values()) > 1


@settings(deadline=None, max_examples=40)
@given(
    present=st.sets(st.text("ab/-.ü", min_size=1, max_size=3), max_size=12),
    wanted=st.lists(st.sampled_from(["a", "ab", "b", "-", "a.b", "ü", "üü", "\ud800", "x" * 1100]), unique=True),
)
def test_sizes_of_objects_are_those_of_a_listing(gcs_server: str, present: set[str], wanted: Sequence[str]) -> None:
    folder = f"{make_bucket(gcs_server, f'bucket-{uuid.uuid4().hex[:8]}')}/folder"
    for name in present:
        if "//" not in f"/{name}/" and not {".", ".."} & set(name.split("/")):
            storage.write_bytes(f"{folder}/{name}", name.encode())
    listed = storage.sizes(folder) if storage.is_folder(folder) else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_store, "_LISTED_AT_ONCE", 2)
        sizes = storage.sizes_of(folder, wanted)
    assert sizes == {name: listed[name] for name in wanted if listed.get(name) is not None}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    yield from parents(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("kind", ["{root}/demo", "tfds:small:1.0.0@{root}/tfds"])
def test_only_the_first_process_asks_the_store(gcs: str, gcs_server: str, parent: Parent, kind: str) -> None:
    """Three processes, each behind a proxy that counts its requests."""
    write(gcs)
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(faulty(gcs_server, rate=0)) for _ in range(3)]
        variables = [common | environment(url) for common, url in zip(joined(3), urls, strict=True)]
        ended = parent.run(OPEN, variables, kind.format(root=gcs))
    assert [one.code for one in ended] == [0, 0, 0], ended
    facts, requests, ids = zip(*(json.loads(one.out) for one in ended), strict=True)
    assert facts[0] == facts[1] == facts[2] and facts[0][:2] == [RECORDS, RECORDS]
    assert ids[0] == ids[1] == ids[2] == [f"caption{k}" for k in range(RECORDS)]
    assert requests[0] > 0 and requests[1:] == (0, 0)


@pytest.mark.slow
def test_the_benchmark_in_miniature(tmp_path: Path) -> None:
    """Requests do not depend on the number of processes, nor on objects that the manifest does not list."""
    kinds = {}
    for processes, strangers in ((1, 0), (3, 9_000)):
        options = [f"--scratch={tmp_path}", "--shards=2500", "--latency=0", "--touched=40", "--records=20"]
        options += [f"--processes={processes}", f"--strangers={strangers}"]
        command = [sys.executable, "benchmarks/many_shards.py", *options]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        result = json.loads(ended.stdout)
        kinds[processes] = [result["opening"][side]["requests_by_kind"] for side in ("records", "tfds")]
    for records, tfds in kinds.values():
        assert records == {"list": 3 + 4, "describe": 4, "read": 1}  # four to see which kind of source it is
        assert sum(tfds.values()) < 60
