"""Pictures that are not what their record says, or that a decoder does not bear, cost their samples."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.config import Config
from qwenvl_jax.data.images import pool
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError
from tests.data import damage
from tests.data.batches import assert_equal, take, wait_for_threads
from tests.data.record_samples import encoded_image, make_record, mixture_of, with_content, with_data
from tests.data.source_files import write_jsonl


def exif_jpeg(width: int, height: int) -> bytes:
    """A JPEG that programs which look at EXIF show on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(payload, "JPEG", exif=exif)
    return payload.getvalue()


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_measured_on_another_size_are_counted(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    """Also where EXIF turns the picture on its side, for which the box was drawn."""
    good = {"image": "good.png", "width": 28, "height": 28, "phrase": "a door", "box": [1, 2, 10, 20]}
    (tmp_path / "good.png").write_bytes(encoded_image(1))
    (tmp_path / "turned.jpg").write_bytes(exif_jpeg(320, 120))
    turned = {"image": "turned.jpg", "width": 120, "height": 320, "phrase": "a door", "box": [10, 10, 60, 300]}
    path = write_jsonl(tmp_path / "boxes.jsonl", [*([good] * 9), turned])
    config = mixture_of(run_config, {"boxes": path}, "ref_grounding", decode_workers=workers)
    with make_loader(config, tokenizer) as loader:
        for _ in range(6):
            next(loader)
        counts = loader.counters()
    share = counts["corrupt"]["boxes"] / (counts["seen"]["boxes"] + counts["corrupt"]["boxes"])
    assert share == pytest.approx(0.1, abs=0.03)
    strict = with_data(config, max_corrupt_share=0.0)
    message = r"boxes:10.*has 320 x 120 pixels \(EXIF rotation is not applied\).*says 120 x 320"
    with make_loader(strict, tokenizer) as loader, pytest.raises(UserError, match=message):
        for _ in range(6):
            next(loader)


def test_dialogues_state_sizes_too_but_thousandths_state_nothing(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(1, 30, 20))
    value = "<img>a.png</img>Where? <box>(1,1),(999,990)</box>"
    turns = [{"from": "user", "value": value}, {"from": "assistant", "value": "There."}]
    thousandths = write_jsonl(tmp_path / "t.jsonl", [{"conversations": turns}])
    good = make_record("dialogue", 0)
    wrong = with_content(good, {**good.content, "sizes": [[28, 28], [27, 28]]})
    write_records(tmp_path / "wrong", {"train": [good, wrong]}, name="wrong")
    sources = {"thousandths": thousandths, "wrong": tmp_path / "wrong"}
    with make_loader(mixture_of(run_config, sources, "dialogue"), tokenizer) as loader:
        for _ in range(6):
            next(loader)
        counts = loader.counters()
    assert counts["corrupt"]["thousandths"] == 0 < counts["seen"]["thousandths"]
    assert counts["corrupt"]["wrong"] == pytest.approx(counts["seen"]["wrong"], abs=4)


# Decoders that hang.


@pytest.mark.slow
def test_a_picture_that_keeps_its_decoder_busy_costs_workers_and_not_the_run(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PROCESSOR_SECONDS", 5.0)
    records = [make_record("caption", k) for k in range(200)]
    records[5] = dataclasses.replace(records[5], images=(damage.endless_gif(32),))
    folder = tmp_path / "records"
    write_records(folder, {"train": records}, name="records")
    config = mixture_of(run_config, {"only": folder}, "caption", decode_workers=1)
    with make_loader(config, tokenizer) as loader:
        workers = set()
        while not (counts := loader.counters())["corrupt"]["only"]:
            next(loader)
            workers.update(loader.workers())
        assert counts["corrupt"]["only"] == 1
        assert len(workers) >= 2
        assert loader.errors()[0].endswith("it is not decoded after 5 seconds of processor time")
        count = counts["batches"]
    records[5] = dataclasses.replace(records[5], images=(b"no picture",))
    write_records(folder, {"train": records}, name="records")
    with make_loader(config, tokenizer) as loader:  # nothing else is different
        others = [next(loader) for _ in range(count)]
        assert loader.counters()["corrupt"]["only"] == 1
    assert all(batch.images.any() for batch in others)


@pytest.mark.slow
def test_a_decoder_that_stands_still_is_replaced_and_the_stream_stays_the_same(
    run_config: Config, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes nothing, so that only the clock shows it; the picture is asked for again and comes out."""
    expected = take(run_config, tokenizer, 8)
    monkeypatch.setattr(pool, "SECONDS", 6.0)
    with make_loader(with_data(run_config, decode_workers=1), tokenizer, prefetch=1) as loader:
        batches = [next(loader) for _ in range(3)]
        [worker] = loader.workers()
        os.kill(worker, signal.SIGSTOP)
        batches += [next(loader) for _ in range(5)]
        assert loader.workers() != [worker]
        assert loader.counters()["corrupt"] == dict.fromkeys(loader.counters()["corrupt"], 0)
    assert_equal(batches, expected)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_closing_does_not_wait_for_a_picture_that_hangs(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    records = [make_record("caption", k) for k in range(50)]
    hanging = [dataclasses.replace(record, images=(damage.endless_gif(32),)) for record in records[:3]]
    write_records(tmp_path / "records", {"train": [*hanging, *records[3:]]}, name="records")
    config = mixture_of(run_config, {"only": tmp_path / "records"}, "caption", decode_workers=1)
    threads = threading.active_count()
    with make_loader(config, tokenizer) as loader:

        def interrupt() -> None:
            deadline = time.monotonic() + 60
            while not loader.workers() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        started = time.monotonic()
    thread.join()
    assert time.monotonic() - started < 30  # the picture would take 60 seconds of processor time, twice
    wait_for_threads(threads)


def test_a_process_without_memory_is_not_the_fault_of_a_picture(
    run_config: Config, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = pool.DecodePool(0, 28, "stretch")

    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setitem(pool.DECODERS, "stretch", none)
    with pytest.raises(MemoryError):
        decoders.submit([encoded_image(1)], [None], np.zeros((1, 28, 28, 3), np.uint8), None, 0).result()
    decoders.close()
