"""Evaluation sets from the command line: every question with its id, also those whose pictures are lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.__main__ import main
from data_pipelines.build.benchmarks import BENCHMARKS
from data_pipelines.clean.rule import judge
from data_pipelines.compose.evaluation import evaluation
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from data_pipelines.recipes.evaluation import EVALUATION_RECIPE
from data_pipelines.report.__main__ import main as write_overview
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.artifacts import read_json
from tests.data_pipelines.build.conftest import one_by_one
from tests.support.corpora.table import FIXTURES


@pytest.fixture(autouse=True)
def without_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam takes a second or two per run."""
    monkeypatch.setattr(beam, "run_steps", one_by_one)


def expected(name: str, split: str, folder: Path) -> list[Record]:
    """The records of a split from a plain loop."""
    records = []
    for row in CORPORA[name].read(folder, split):
        if isinstance(row, RawPair):
            record = evaluation(judge(EVALUATION_RECIPE, row).pair)
            records += [record] if record else []
    return records


def read(folder: Path, split: str) -> list[Record]:
    return list(RecordReader(folder / "evaluation", split, verify=True))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_records_of_a_benchmark_are_those_of_its_pairs(name: str, tmp_path: Path) -> None:
    """For every split of the table; the ids of all questions of a split differ."""
    FIXTURES[name](tmp_path / "raw")
    for split in BENCHMARKS[name]:
        output = tmp_path / f"{name}_{split}"
        main([name, "--evaluation", f"--split={split}", f"--input={tmp_path / 'raw'}", f"--output={output}"])
        records = read(output, split)
        assert records == expected(name, split, tmp_path / "raw")
        ids = [question["id"] for record in records for question in record.content["questions"]]  # type: ignore
        assert len(set(ids)) == len(ids) > 0
        assert read_manifest(output / "evaluation")["splits"][split]["samples"] == len(ids)


def test_a_missing_picture_costs_no_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIXTURES["vqav2"](tmp_path / "raw")
    whole = expected("vqav2", "val", tmp_path / "raw")
    pictures = sorted((tmp_path / "raw/val2014").iterdir())
    pictures[0].unlink()
    pictures[1].write_bytes(b"<html>")
    main(["vqav2", "--evaluation", "--split=val", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"])
    records = read(tmp_path / "out", "val")
    assert [record.content for record in records] == [record.content for record in whole]
    assert [record.images for record in records] == [(b"",), (b"<html>",)]
    said = capsys.readouterr().out
    assert "picture missing: 1 of 2 records" in said and "picture unreadable: 1 of 2 records" in said
    assert "rows that could not be read and are not asked: 1 (question without an answer 1), see failed.jsonl" in said


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("gqa", "testdev", "testdev_balanced_questions.json"),
        ("nocaps", "val", "nocaps_val_4500_captions.json"),
        ("seed_bench", "test", "SEED-Bench.json"),
        ("vqav2", "val", "v2_OpenEnded_mscoco_val2014_questions.json"),
    ],
)
def test_a_benchmark_that_lacks_questions_says_so(
    name: str, split: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is cut off, as by a download that ended early; one of another shape; one without entries."""
    FIXTURES[name](tmp_path / "raw")
    whole = (tmp_path / "raw" / file).read_bytes()
    command = [name, "--evaluation", f"--split={split}", f"--input={tmp_path / 'raw'}"]
    for number, payload in enumerate((whole[: 2 * len(whole) // 3], b"3", b'{"questions": [], "annotations": []}')):
        (tmp_path / "raw" / file).write_bytes(payload)
        main([*command, f"--output={tmp_path / str(number)}"])
        said = capsys.readouterr().out
        if number < 2:
            assert "the rest of a file could not be read, so questions are missing; get that file again" in said
        if number == 1:
            assert "it has no question; compare its files with docs/benchmark_data.md" in said


def test_a_picture_that_was_missing_is_looked_for_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIXTURES["okvqa"](tmp_path / "raw")
    command = ["okvqa", "--evaluation", "--split=val", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "raw/val2014").rename(tmp_path / "elsewhere")
    main(command)
    assert [record.images for record in read(tmp_path / "out", "val")] == [(b"",)] * 2
    (tmp_path / "elsewhere").rename(tmp_path / "raw/val2014")
    main(command)
    assert "lacks pictures, which are looked for again" in capsys.readouterr().out
    assert read(tmp_path / "out", "val") == expected("okvqa", "val", tmp_path / "raw")
    main(command)
    assert "is up to date" in capsys.readouterr().out


def test_a_benchmark_on_gs_is_that_on_a_disk(gcs: str, tmp_path: Path) -> None:
    """With a picture that is missing."""
    FIXTURES["vqav2"](tmp_path / "raw")
    next((tmp_path / "raw/val2014").iterdir()).unlink()
    for path in sorted((tmp_path / "raw").rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{gcs}/raw/{path.relative_to(tmp_path / 'raw')}", path.read_bytes())
    command = ["vqav2", "--evaluation", "--split=val", "--workers=1"]
    main([*command, f"--input={gcs}/raw", f"--output={gcs}/out"])
    assert list(RecordReader(f"{gcs}/out/evaluation", "val")) == expected("vqav2", "val", tmp_path / "raw")


def test_all_benchmarks_that_are_there_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RefCOCO+ is in the folder of RefCOCO; a split without its file is left out."""
    for name in ("gqa", "refcoco", "chartqa"):
        FIXTURES[name](tmp_path / "raw" / name)
    FIXTURES["refcoco_plus"](tmp_path / "raw" / "refcoco")
    (tmp_path / "raw/chartqa/test/test_human.json").unlink()
    main(["benchmarks", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'data'}"])
    built = {path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")}
    phrases = {f"{name}_{split}" for name in ("refcoco", "refcoco_plus") for split in ("val", "test_a", "test_b")}
    assert built == {"gqa_testdev", "chartqa_test_augmented", *phrases}
    said = capsys.readouterr().out
    assert "chartqa, test_human is left out: " in said and "test_human.json does not exist" in said
    assert "nocaps, flickr30k, coco_karpathy, vqav2" in said
    shutil.rmtree(tmp_path / "raw" / "chartqa")
    main(["benchmarks", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'data'}"])
    assert "gqa_testdev is up to date" in capsys.readouterr().out


def test_a_benchmark_that_cannot_be_built_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gqa", "vqav2"):
        FIXTURES[name](tmp_path / "raw" / name)
    (tmp_path / "data/vqav2_val").mkdir(parents=True)
    (tmp_path / "data/vqav2_val/thesis.txt").write_text("of somebody else")
    line = refusal(capsys, "benchmarks", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'data'}")
    assert line.startswith("error: vqav2, val: ") and "run the same command again" in line
    assert (tmp_path / "data/gqa_testdev/evaluation").is_dir()


def test_the_page_of_several_outputs_has_the_evaluation_sets(tmp_path: Path) -> None:
    """Apart from training data, with their questions and what they lack."""
    FIXTURES["vqav2"](tmp_path / "raw")
    next((tmp_path / "raw/val2014").iterdir()).unlink()
    folders = (f"--input={tmp_path / 'raw'}", "--workers=1")
    main(["vqav2", "--evaluation", "--split=val", *folders, f"--output={tmp_path / 'data/asked'}"])
    write_overview([str(tmp_path / "data")])
    page = (tmp_path / "data/report.html").read_text()
    assert "Evaluation sets" in page and "As Table 3" not in page
    assert "picture missing: 1 of 2 records" in page and "<td>3</td>" in page.replace('<td class="number">', "<td>")
    main(["vqav2", *folders, f"--output={tmp_path / 'data/trained'}"])
    write_overview([str(tmp_path / "data")])
    page = (tmp_path / "data/report.html").read_text()
    assert "Evaluation sets" in page and "As Table 3" in page
    of_set = (tmp_path / "data/asked/report.html").read_text()
    assert "samples per record with pictures" in of_set


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_mistakes_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (f"--input={tmp_path}", f"--output={tmp_path}/output")
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("vqav2", "--evaluation", *flags), "--evaluation needs a --split of vqav2; it has train, val"),
        (("vqav2", "--evaluation", "--split=vall", *flags), "vqav2 has no split 'vall'; did you mean 'val'"),
        (("text", "--evaluation", "--split=train", *flags), "so it is no benchmark"),
        (("kgeography", "--evaluation", "--split=train", *flags), "has questions and phrases with boxes, which no"),
        (("table3", "--evaluation", *flags), "table3 is a mixture for training"),
        (("vqav2", "--evaluation", "--split=val", "--clip=ViT-B-32", *flags), "but a benchmark is asked as a whole"),
        (("benchmarks", "--split=val", *flags), "benchmarks has neither --split nor --retry"),
        (("benchmarks", *flags), "has no folder with the files of a benchmark; it needs some of nocaps"),
        (("coco_karpathy", *flags), "is a benchmark, on which no model may be trained; add --evaluation and --split"),
        (("benchmark", *flags), "did you mean 'benchmarks'"),
    ]
    for arguments, words in cases:
        line = refusal(capsys, *arguments)
        assert line.startswith("error: ") and words in line, (arguments, line)


def test_a_benchmark_is_one_corpus_of_the_table() -> None:
    for name, splits in BENCHMARKS.items():
        assert set(splits) <= set(CORPORA[name].splits)


def test_the_manifest_counts_lost_pictures(tmp_path: Path) -> None:
    FIXTURES["refcoco"](tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw/images")
    main(["refcoco", "--evaluation", "--split=val", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"])
    records = read(tmp_path / "out", "val")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    (counts,) = [each for each in manifest["rules"] if each["rule"] == "evaluation_pictures"]
    assert counts["causes"]["picture missing"] == len(records) and counts["dropped"] == {}
