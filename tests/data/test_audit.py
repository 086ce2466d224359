"""The audit of a stage's input: what it draws, counts, draws into images and writes, against training itself."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.auditing.packing_preview import PackingPreview
from qwenvl_jax.auditing.page import page
from qwenvl_jax.auditing.samples import Audit, audit, draw
from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.examples import DrawnRecord, decode_images, make_example
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.mixture_reader import MixtureReader, open_sources
from qwenvl_jax.data.packed_groups import PackIterDataset
from qwenvl_jax.data.pipeline import drawn_records
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.html.style import PALETTE
from qwenvl_jax.runtime.errors import UserError
from tests.data import damage
from tests.data.record_samples import make_record, with_content, with_data
from tests.data.source_files import write_jsonl

QUERIES = 4


class Recorder(MixtureReader):
    """Notes what is read, in order, if it is read from one thread."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.seen: list[tuple[int, int]] = []

    def read(self, source: int, index: int) -> DrawnRecord:
        self.seen.append((source, int(index)))
        return super().read(source, index)


def reader_of(config: Config, tokenizer: Tokenizer) -> Recorder:
    return Recorder(config.data, open_sources(config.data), tokenizer, QUERIES)


def drawn_by_training(config: Config, tokenizer: Tokenizer, stream: int, groups: int) -> list[tuple[int, int]]:
    """The records that a stream takes for its first groups of rows, by the code that training uses."""
    reader = reader_of(config, tokenizer)
    read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    trained = PackIterDataset(reader, drawn_records(reader, stream), read_options).__iter__()
    for _ in range(groups):
        next(trained)
    return reader.seen


def first_drawn(config: Config, tokenizer: Tokenizer, count: int) -> list[tuple[int, int]]:
    with contextlib.closing(draw(reader_of(config, tokenizer), PackingPreview(config.data, QUERIES))) as drawn:
        findings = itertools.chain.from_iterable(drawn)
        return [(finding.source, finding.record) for finding in itertools.islice(findings, count)]


def one_source(config: Config, folder: Path, records: list[Record], **changes: Any) -> Config:
    """A config that reads only these records, all of one task."""
    task = records[0].task
    write_records(folder / "only", {"train": records}, name="only")
    return with_data(config, mixture=(SourceConfig("only", task, str(folder / "only"), 1.0),), **changes)


def text_of(shown: str) -> str:
    """What a reader sees of the samples' tokens on a page."""
    return html.unescape(re.sub(r"<[^>]*>", "", "".join(re.findall(r'<div class="tokens">(.*?)</div>', shown, re.S))))


def shape_of(points: str, style: str = "region", color: str = PALETTE[0]) -> str:
    """The outline of a region as the page has it."""
    return f'<polygon class="{style}" stroke="{color}" points="{points}"/>'


@pytest.mark.parametrize("streams", [1, 2])
def test_draws_what_training_draws(run_config: Config, tokenizer: Tokenizer, tmp_path: Path, streams: int) -> None:
    """Of every stream, in its order, over times at which weights change, and the streams in turn."""
    records = [make_record("ref_grounding", k) for k in range(12)]
    for k in range(3):
        long, outside = ({**records[k].content, **new} for new in ({"phrase": "dog " * 300}, {"box": [0, 0, 99, 9]}))
        records[k] = dataclasses.replace(records[k], images=(b"no picture",))
        records[k + 3] = with_content(records[k + 3], long)
        records[k + 6] = with_content(records[k + 6], outside)
    broken = one_source(run_config, tmp_path, records, max_corrupt_share=1.0)
    first, second, *rest = run_config.data.mixture
    mixture = (
        dataclasses.replace(first, schedule=((30.0, 0.0), (90.0, 40.0))),
        dataclasses.replace(second, schedule=((60.0, 0.0),)),
        *rest,
        dataclasses.replace(broken.data.mixture[0], weight=5.0),
    )
    config = with_data(broken, mixture=mixture, image_groups=2, streams=streams)
    trained = [drawn_by_training(config, tokenizer, stream, 40 // streams) for stream in range(streams)]
    together = [sample for turn in zip(*trained, strict=False) for sample in turn]
    assert len(together) > 100
    assert first_drawn(config, tokenizer, len(together)) == together


def test_numbers_are_those_of_the_examples(run_config: Config, tokenizer: Tokenizer) -> None:
    """Tokens, supervised tokens, images and quantiles, summed over `make_example` of every record drawn."""
    count, mixture = 150, run_config.data.mixture
    numbers = audit(run_config, count, 0).numbers
    drawn = first_drawn(run_config, tokenizer, count)
    readers = [RecordReader(source.records) for source in mixture]
    supervised_in_all = 0
    for number, own in enumerate(numbers["sources"]):
        examples = [
            make_example(readers[number][index], number, tokenizer, QUERIES)
            for source, index in drawn
            if source == number
        ]
        lengths = sorted(len(example.tokens.tokens_L) for example in examples)
        supervised = sum(int(example.tokens.is_target_L[1:].sum()) for example in examples)
        images = [len(example.images) for example in examples]
        assert lengths[-1] <= run_config.data.sequence_length, "nothing is dropped here"
        assert (own["name"], own["task"]) == (mixture[number].name, mixture[number].task)
        assert own["records"] == 23
        assert own["samples"] == own["used"] == len(examples)
        assert own["share"] == pytest.approx(len(examples) / count)
        assert (own["tokens"], own["supervised"], own["images"]) == (sum(lengths), supervised, sum(images))
        assert own["supervised_share"] == pytest.approx(supervised / sum(lengths))
        assert (own["length"]["min"], own["length"]["max"]) == (lengths[0], lengths[-1])
        assert own["length"]["median"] == lengths[(len(lengths) - 1) // 2]
        for bar in own["length_histogram"]:
            assert bar["samples"] == sum(bar["first"] <= length <= bar["last"] for length in lengths)
        assert sum(bar["samples"] for bar in own["length_histogram"]) == len(lengths)
        by_images = {bar["first"]: bar["samples"] for bar in own["image_histogram"] if bar["samples"]}
        assert by_images == {value: images.count(value) for value in set(images)}
        supervised_in_all += supervised
    total = numbers["total"]
    assert total["supervised"] == supervised_in_all
    assert total["samples"] == sum(own["samples"] for own in numbers["sources"]) == count
    assert sum(own["loss_share"] for own in numbers["sources"]) == pytest.approx(1)


def test_shares_are_those_that_the_loader_counts(run_config: Config, tokenizer: Tokenizer) -> None:
    """Over whole epochs of one source both see every record as often."""
    config = with_data(run_config, mixture=run_config.data.mixture[:1])
    with make_loader(config, tokenizer) as loader:
        while (counters := loader.counters())["batches"] < 12:
            next(loader)
    total = audit(config, 23 * 8, 0).numbers["total"]
    assert total["tokens"] / total["used"] == pytest.approx(
        counters["tokens"] / counters["seen"]["caption_mix"], rel=0.02
    )
    assert total["supervised_share"] == pytest.approx(counters["targets"] / counters["tokens"], rel=0.02)


def test_dropped_and_corrupt_are_counted_and_named(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Each once: too long, an image that is none, a box outside its image; a broken image of a long one is not read."""
    records = [make_record("ref_grounding", k) for k in range(20)]
    outside = {**records[1].content, "box": [0, 0, 99, 9]}
    long = {**records[2].content, "phrase": "dog " * 300}
    records[0] = dataclasses.replace(records[0], images=(b"not a picture",))
    records[1] = with_content(records[1], outside)
    records[2] = with_content(records[2], long, images=(b"never seen",))
    config = one_source(run_config, tmp_path, records)
    numbers = audit(config, 40, 40).numbers
    [own] = numbers["sources"]
    assert (own["samples"], own["used"], own["dropped"], own["corrupt"]) == (40, 34, 2, 4)
    good = [make_example(record, 0, tokenizer, QUERIES) for record in records[3:]]
    assert own["tokens"] == 2 * sum(len(example.tokens.tokens_L) for example in good)
    assert own["images"] == 34
    assert own["length"]["max"] > 160 and own["length_histogram"][-1]["dropped"] == 2
    assert own["length_histogram"][-1]["first"] == 161
    named = {(entry["state"], entry["record"]): entry["message"] for entry in own["left_out"]}
    assert len(own["left_out"]) == 3, "each once"
    assert set(named) == {("corrupt", 0), ("corrupt", 1), ("dropped", 2)}
    assert "'ref_grounding0': 13 bytes" in named["corrupt", 0]
    assert "'ref_grounding1'" in named["corrupt", 1] and "outside its image" in named["corrupt", 1]
    assert "'ref_grounding2'" in named["dropped", 2] and "a row 160" in named["dropped", 2]
    note, *others = numbers["notes"]
    assert others == [note for note in others if note.startswith("too few samples were drawn to fill an image group")]
    assert note.startswith("4 of 40 samples are corrupt, above config.data.max_corrupt_share 0.01")
    shown = page(audit(config, 40, 3), config)
    assert html.escape(note) in shown and html.escape(named["corrupt", 1]) in shown
    assert shown.count("<article") == 3 and ">over 160</text>" in shown


def test_too_many_images_are_dropped(run_config: Config, tmp_path: Path) -> None:
    config = one_source(
        run_config,
        tmp_path,
        [make_record("dialogue", k) for k in range(5)],
        images_per_row=0.25,
        image_groups=4,
        long_samples="drop",
    )
    assert config.data.group_images == 1
    numbers = audit(config, 10, 1).numbers
    assert numbers["total"]["dropped"] == 10 and not numbers["total"]["tokens"]
    assert "it has 2 images" in numbers["sources"][0]["left_out"][0]["message"]
    assert any("no sample of source 'only' fits a row" in note for note in numbers["notes"])


def test_a_source_that_was_not_drawn_is_named(run_config: Config) -> None:
    found = audit(run_config, 3, 1)
    assert any("no sample of source 'dialogue_mix' was drawn" in note for note in found.numbers["notes"])
    assert "No sample to show." in page(found, run_config)


def test_a_box_is_drawn_where_the_tokens_say(run_config: Config, tmp_path: Path) -> None:
    """[7, 14, 21, 28] of 28 pixels is (250,500),(750,999); the image beneath it is the one the model sees."""
    pixels = np.zeros((56, 28, 3), np.uint8)  # upright, so that a square one has been resized
    pixels[28:, 7:21] = (250, 20, 20)
    payload = io.BytesIO()
    Image.fromarray(pixels).save(payload, "PNG")
    content = {"phrase": "the red one", "box": [7, 28, 21, 56], "width": 28, "height": 56}
    record = with_content(make_record("ref_grounding", 0), content, images=(payload.getvalue(),))
    config = one_source(run_config, tmp_path, [record])
    found = audit(config, 1, 1)
    shown = page(found, config)
    assert shape_of("250,500 750,500 750,999 250,999") in shown
    assert "<ref>the red one</ref><box>1(250,500),(750,999)</box><|endoftext|>" in text_of(shown)
    assert (found.numbers["total"]["regions"], found.numbers["total"]["empty_regions"]) == (1, 0)
    [picture] = re.findall(r'href="data:image/jpeg;base64,([^"]*)" width="1000" height="1000"', shown)
    seen_HWC = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
    [expected_HWC] = decode_images(record.images, 28)
    assert seen_HWC.shape == (28, 28, 3)
    assert np.abs(seen_HWC - expected_HWC).mean() < 3


def test_given_regions_are_dashed_and_quadrilaterals_keep_their_corners(run_config: Config, tmp_path: Path) -> None:
    record = make_record("grounded_caption", 0)
    config = one_source(run_config, tmp_path, [record])
    assert shape_of("0,0 999,0 999,999 0,999", "region dashed") in page(audit(config, 1, 1), config)
    lines = [{"text": "STOP", "quad": [[2, 1], [14, 3], [13, 9], [1, 7]]}]
    record = with_content(make_record("ocr", 0), {"lines": lines, "width": 28, "height": 28})
    config = one_source(run_config, tmp_path / "ocr", [record])
    assert shape_of("71,35 500,107 464,321 35,250") in page(audit(config, 1, 1), config)


def test_a_region_is_drawn_into_the_images_before_it_alone(run_config: Config, tmp_path: Path) -> None:
    """The first answer's box only into the first image, the second's into the second, and faintly into the first."""
    turns = [
        {"role": role, "parts": [part]}
        for image in (0, 1)
        for role, part in (
            ("user", {"image": image}),
            ("assistant", {"boxes": [[0, 0, 7, 7 * (image + 1)]], "image": image}),
        )
    ]
    record = make_record("dialogue", 0)
    record = with_content(record, {**record.content, "turns": turns})
    config = one_source(run_config, tmp_path, [record])
    one, two = re.findall("<figure>.*?</figure>", page(audit(config, 1, 1), config))
    first, second = "0,0 250,0 250,250 0,250", "0,0 250,0 250,500 0,500"
    assert shape_of(first) in one and shape_of(second, "region faint", PALETTE[1]) in one
    assert first not in two and shape_of(second, color=PALETTE[1]) in two


def test_texts_cannot_become_markup(run_config: Config, tmp_path: Path) -> None:
    """Neither HTML nor tags spelled out in a caption, a name or an error."""
    evil = '<script>alert("1")</script> & <box>(1,1),(20,20)</box></div>'
    records = [
        dataclasses.replace(make_record("caption", k), id=f"<i>{k}</i>", content={"caption": evil}) for k in range(2)
    ]
    records[1] = dataclasses.replace(records[1], images=(b"<b>oh</b>",))
    config = one_source(run_config, tmp_path, records)
    config = with_data(config, mixture=(dataclasses.replace(config.data.mixture[0], name="<u>x</u>"),))
    found = audit(config, 4, 2)
    shown = page(found, config)
    assert not re.search(r"<(script|i|u)\b", shown) and "<polygon" not in shown
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp;" in shown and "&lt;i&gt;0&lt;/i&gt;" in shown
    assert evil in text_of(shown)
    assert found.numbers["total"]["regions"] == 0


def test_the_page_stands_alone_and_shows_the_first_samples(run_config: Config, tokenizer: Tokenizer) -> None:
    found = audit(run_config, 60, 2)
    shown = page(found, run_config)
    assert not re.search(r'(href|src)="(?!#|data:)', shown) and "url(" not in shown and "<script" not in shown
    drawn = first_drawn(run_config, tokenizer, 60)
    for number, source in enumerate(run_config.data.mixture):
        expected = [RecordReader(source.records)[index] for own, index in drawn if own == number][:2]
        assert [example.record_id for example in found.examples[number]] == [record.id for record in expected]
        assert all(f"<h3>{record.id} · " in shown for record in expected)
    caption = RecordReader(run_config.data.mixture[0].records)[drawn[[own for own, _ in drawn].index(0)][1]]
    assert '<span class="taught" title="' in shown and f" {dict(caption.content)['caption']}" in text_of(shown)
    assert '<span class="image" title="4 tokens, not supervised">image 1: 4 slots</span>' in shown


def test_the_same_audit_twice_gives_the_same_bytes(run_config: Config) -> None:
    def once() -> tuple[str, str]:
        found: Audit = audit(run_config, 80, 2)
        return json.dumps(found.numbers), page(found, run_config)

    assert once() == once()


def test_checksums_are_compared_on_demand(run_config: Config, tmp_path: Path) -> None:
    config = one_source(run_config, tmp_path, [make_record("caption", k) for k in range(30)])
    audit(config, 5, 0, verify=True)
    [shard] = (tmp_path / "only").glob("*.array_record*")
    payload = bytearray(shard.read_bytes())
    payload[len(payload) // 2] ^= 1
    shard.write_bytes(payload)
    with pytest.raises(UserError, match="does not have the sha256 of the manifest"):
        audit(config, 5, 0, verify=True)


def test_a_small_source_that_cannot_be_read_is_noted(run_config: Config, tmp_path: Path, record_folders: Path) -> None:
    """Beside a large one, in whose share it would never show."""
    records = [dataclasses.replace(make_record("caption", k), images=(b"lost",)) for k in range(9)]
    write_records(tmp_path / "lost", {"train": records}, name="lost")
    sources = (
        SourceConfig("good", "caption", str(record_folders / "caption"), 49.0),
        SourceConfig("lost", "caption", str(tmp_path / "lost"), 1.0),
    )
    numbers = audit(with_data(run_config, mixture=sources, max_corrupt_share=0.05), 100, 1).numbers
    assert [own["corrupt"] for own in numbers["sources"]] == [0, 2]
    assert numbers["notes"][0].startswith("2 of 2 samples of source 'lost' are corrupt, above")


def test_the_audit_counts_what_training_counts(run_config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Damaged records, teaching nothing, of other sizes, and pictures that are none."""
    good = [make_record("ref_grounding", k) for k in range(40)]
    payloads = [encode_record(record) for record in good]
    payloads[3] = payloads[3][:50]
    payloads[9] = damage.with_content(good[9], {**good[9].content, "phrase": None})
    payloads[10] = encode_record(with_content(good[10], {**good[10].content, "width": 29}))
    payloads[30] = encode_record(dataclasses.replace(good[30], images=(b"none",)))
    damage.write_payloads(tmp_path / "records", payloads, good[0])
    source = SourceConfig("only", "ref_grounding", str(tmp_path / "records"), 1.0)
    config = with_data(run_config, mixture=(source,), max_corrupt_share=0.5)
    [own] = audit(config, 40, 1).numbers["sources"]
    assert (own["corrupt"], own["used"]) == (4, 36)
    assert {entry["record"] for entry in own["left_out"]} == {3, 9, 10, 30}
    with make_loader(config, tokenizer) as loader:
        for _ in range(12):
            next(loader)
        counts = loader.counters()
    corrupt, seen = counts["corrupt"]["only"], counts["seen"]["only"]
    assert corrupt / (corrupt + seen) == pytest.approx(0.1, abs=0.02)


def test_lines_that_cannot_be_used_are_shown(run_config: Config, tmp_path: Path) -> None:
    """A conversation in which nobody answers teaches nothing, and the audit says which one that is."""
    said = [{"from": "user", "value": "Answer as <box>(x1,y1),(x2,y2)</box>"}, {"from": "gpt", "value": "Yes."}]
    samples = [{"id": k, "conversations": said[: 1 if k == 3 else 2]} for k in range(20)]
    path = write_jsonl(tmp_path / "talks.jsonl", samples)
    config = with_data(run_config, mixture=(SourceConfig("talks", "dialogue", str(path), 1.0),))
    found = audit(config, 40, 2)
    [source] = found.numbers["sources"]
    assert (source["corrupt"], source["used"], source["regions"]) == (
        2,
        38,
        0,
    )  # a tag that is only mentioned is not a region
    [entry] = source["left_out"]
    assert "line 4: " in entry["message"] and "no turn is the assistant's" in entry["message"]
    assert "line 4: " in html.unescape(page(found, config))


def test_the_audit_packs_what_training_packs(run_config: Config, tokenizer: Tokenizer) -> None:
    """Of one stream the same groups, so the same fill; and it says which budget does not suit the samples."""
    packing = audit(run_config, 400, 0).numbers["packing"]
    with make_loader(run_config, tokenizer) as loader:
        groups = 0
        while groups < packing["rows"] / run_config.data.group_rows:
            next(loader)
            groups += run_config.data.accumulation
        counters = loader.counters()
    assert packing["token_fill"] == pytest.approx(counters["token_fill"], abs=0.03)
    assert packing["image_fill"] == pytest.approx(counters["image_fill"], abs=0.05)
    few = audit(with_data(run_config, images_per_row=1.0), 400, 0).numbers["notes"]
    assert any("of the rows stay empty because their groups have no images left" in note for note in few)
    many = audit(with_data(run_config, images_per_row=30.0), 400, 0).numbers["notes"]
    assert any("of the images stay empty: config.data.images_per_row is 30" in note for note in many)
