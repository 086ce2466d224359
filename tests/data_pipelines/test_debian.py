"""The real corpus: how packages become folders of corpora, and a run of training on a small one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from configs.quickstart import corpora
from data_pipelines.__main__ import main
from data_pipelines.build.mixtures import MIXTURES
from data_pipelines.corpora.table import CORPORA
from data_pipelines.debian import captions, manuals
from data_pipelines.debian.__main__ import main as build_real
from data_pipelines.debian.__main__ import prepare, writers
from data_pipelines.fetch.apt import SourceUnavailable
from data_pipelines.pair import RawPair
from qwenvl_jax.config import load_config
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.loop import train
from tests.support.corpora import maps, rendered

SVG = """<?xml version="1.0"?>
<svg xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>{title}</dc:title>
<dc:description>{description}</dc:description><dc:publisher><dc:title>Open Clip Art Library</dc:title></dc:publisher>
</metadata></svg>"""


def write_clipart_packages(cache: Path) -> None:
    """Both packages as they are unpacked: three drawings, of which one has no picture."""
    for number, (title, description) in enumerate(
        [("flag_01", "The flag of a &amp; b"), ("A red tree", ""), ("x", "y")]
    ):
        drawing = cache / f"openclipart-svg/usr/share/openclipart/svg/signs/{number}.svg"
        drawing.parent.mkdir(parents=True, exist_ok=True)
        drawing.write_text(SVG.format(title=title, description=description))
        picture = cache / f"openclipart-png/usr/share/openclipart/png/signs/{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        if number < 2:
            Image.new("RGB", (300, 250), (200, 30 * number, 0)).save(picture)


def write_stamps_package(cache: Path) -> None:
    root = cache / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    root.mkdir(parents=True)
    Image.new("RGBA", (90, 60), (10, 200, 0, 128)).save(root / "frog.png")
    (root / "frog.txt").write_text("A frog.\nde.utf8=Ein Frosch.\nzh_CN.utf8=一只青蛙。\n")


def pairs(corpus: str, folder: Path) -> list[RawPair]:
    rows = list(CORPORA[corpus].read(folder))
    assert all(isinstance(row, RawPair) for row in rows)
    return [row for row in rows if isinstance(row, RawPair)]


def test_captions_are_those_of_the_authors_of_the_pictures(tmp_path: Path) -> None:
    write_clipart_packages(tmp_path)
    captions.write_openclipart(tmp_path, tmp_path / "openclipart")
    rows = pairs("openclipart", tmp_path / "openclipart")
    assert [row.texts for row in rows] == [("The flag of a & b",), ("A red tree",)]
    pictures = tmp_path / "openclipart-png/usr/share/openclipart/png/signs"
    assert [row.pictures[0].read() for row in rows] == [(pictures / f"{k}.png").read_bytes() for k in (0, 1)]
    assert {row.license for row in rows} == {captions.OPENCLIPART_LICENSE}


def test_a_stamp_is_a_row_in_each_language(tmp_path: Path) -> None:
    write_stamps_package(tmp_path)
    captions.write_tuxpaint_stamps(tmp_path, tmp_path / "stamps")
    rows = pairs("tuxpaint_stamps", tmp_path / "stamps")
    assert [(row.language, row.texts) for row in rows] == [("en", ("A frog.",)), ("zh", ("一只青蛙。",))]


def test_tars_are_cut_and_the_same_every_time(tmp_path: Path) -> None:
    rows = [(bytes([k % 7]), {"caption": str(k)}) for k in range(captions.ROWS_PER_TAR + 1)]
    for name in ("first", "second"):
        captions.write_tars(tmp_path / name, rows)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["00000.tar", "00001.tar"]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize(("length", "count"), [(130, 16), (5, 16), (1, 1), (16, 16), (0, 3)])
def test_spread_values_are_distinct_and_in_order(length: int, count: int) -> None:
    chosen = manuals.spread(range(length), count)
    assert len(chosen) == min(length, count) and chosen == sorted(set(chosen))
    assert all(0 <= value < length for value in chosen)


def test_paragraphs_are_the_text_without_markup() -> None:
    html = "<h1>T</h1><p>One <b>bold</b>\n word &lt;p&gt;.</p><pre>code</pre><p> </p><p>二</p>"
    assert manuals.paragraphs_of(html) == "One bold word <p>.\n二"


def test_a_corpus_that_cannot_be_fetched_is_left_out_and_the_others_are_kept(tmp_path: Path) -> None:
    calls = []

    def good(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("a")

    def offline(folder: Path) -> None:
        raise SourceUnavailable("apt-get is not installed")

    def no_browser(folder: Path) -> None:
        raise UserError("HTML pages need Chromium")

    chosen = {"text": good, "openclipart": offline, "html_pages": no_browser}
    sentences = prepare(tmp_path, chosen, {"pages": 2})
    assert sentences == [
        "openclipart is left out: apt-get is not installed",
        "html_pages is left out: HTML pages need Chromium",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".settings", "text"]
    prepare(tmp_path, chosen, {"pages": 2})
    assert len(calls) == 1
    prepare(tmp_path, chosen, {"pages": 3})
    assert len(calls) == 2
    prepare(tmp_path, {"text": offline}, {"pages": 4})
    assert not (tmp_path / "text").exists()


def test_a_corpus_is_written_again_if_a_run_with_other_settings_was_killed_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = iter("121")
    chosen = {"text": lambda folder: (folder / "a").write_text(next(written))}
    prepare(tmp_path, chosen, {"pages": 1})
    with monkeypatch.context() as context:
        context.setattr(artifacts, "write_json", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            prepare(tmp_path, chosen, {"pages": 2})
    assert (tmp_path / "text" / "a").read_text() == "2"
    prepare(tmp_path, chosen, {"pages": 1})
    assert (tmp_path / "text" / "a").read_text() == "1"


def test_every_corpus_of_the_mixture_has_a_writer() -> None:
    assert sorted(writers(Path("cache"), 1)) == sorted(MIXTURES["debian"].corpora)


def test_a_wrong_flag_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_real([f"--cache={tmp_path}", "--pages=0"])
    assert ended.value.code == 2 and "--pages must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        build_real(["--cache=gs://bucket/cache"])
    assert ended.value.code == 2 and "must be a folder on a disk" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quickstart_trains_on_the_mixture(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    maps.write_kgeography(raw / "kgeography")
    write_stamps_package(tmp_path / "cache")
    captions.write_tuxpaint_stamps(tmp_path / "cache", raw / "tuxpaint_stamps")
    rendered.write_synthetic_pages(raw / "synthetic_pages")
    (raw / "text").mkdir()
    texts = [f"{number}. {' '.join(rendered.ENGLISH)}" for number in range(3)]
    (raw / "text/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    main(["debian", f"--input={raw}", f"--output={tmp_path}/data", "--workers=1"])

    vocabulary = tmp_path / "quickstart/vocabulary/quickstart.model"
    vocabulary.parent.mkdir(parents=True)
    prompts = "Map of Shire with North, South. OCR with grounding: Answer: (0123456789)"
    train_sentencepiece([*texts, prompts], 420, vocabulary)
    values = corpora.get_config(data=f"{tmp_path}/data", quickstart=f"{tmp_path}/quickstart")
    values.init = dict(stage="", vit="", resampler="", decoder="", step=-1)  # there is no stage 1
    values.optimizer.warmup_steps = 1
    values.train.steps = 3
    assert train(load_config(values), tmp_path / "run") == 3
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["loss_by_task"]) <= set(corpora.WEIGHTS)


@pytest.mark.slow
def test_real_packages_become_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it with two pages; about 350 MB are fetched."""
    try:
        manuals.write_text(tmp_path / "cache", tmp_path / "probe")
    except SourceUnavailable as error:
        pytest.skip(f"the packages cannot be fetched: {error}")
    build_real([f"--cache={tmp_path}/cache", f"--output={tmp_path}/corpora", "--pages=2"])
    assert "remaining %" in capsys.readouterr().out
    summary = json.loads((tmp_path / "corpora/multitask/mixture.json").read_text())
    cleaned = {corpus: counts["cleaned"] for corpus, counts in summary["corpora"].items()}
    assert all(cleaned.values())
    assert cleaned["kgeography"] > 200 and 0.1 < cleaned["openclipart"] / 6824 < 0.4
    if shutil.which("chromium"):
        assert {entry["name"] for entry in summary["entries"]} == set(corpora.WEIGHTS)
