"""A mixture: its corpora through the engine, and the folders that the stage configs read."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import stage1_pretrain, stage2_multitask
from configs.quickstart import corpora as quickstart_corpora
from data_pipelines.__main__ import main
from data_pipelines.build.build_mixture import build_mixture
from data_pipelines.build.mixtures import MIXTURES
from data_pipelines.clean.grounding import boxes_in_picture, flat_spans, spans_in_text
from data_pipelines.clean.image import open_pictures
from data_pipelines.clean.rule import rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.ocr.html import BROWSERS
from qwenvl_jax.auditing.samples import audit
from qwenvl_jax.config import load_config
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import sample_count
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.folder_lock import locked
from tests.support.corpora.table import FIXTURES

# Fixtures are too small and their texts too short for the recipes; these rules make their pairs fit to be composed.
RULES = (rule(open_pictures), rule(boxes_in_picture), rule(spans_in_text), rule(flat_spans))


@pytest.fixture
def build_corpus(run_small: Callable[..., Any]) -> Callable[[str, str, str], Any]:
    """Builds a corpus without Beam."""

    def build(name: str, folder: str, output: str) -> Any:
        corpus = CORPORA[name]
        composers = {task: COMPOSERS[task] for task in corpus.tasks}
        return run_small(
            Path(folder), Path(output), split="train", corpus=corpus, recipe=RULES, across=(), composers=composers
        )

    return build


def write(folder: Path, corpora: list[str]) -> None:
    for corpus in corpora:
        (folder / corpus).mkdir(parents=True)
        FIXTURES[corpus](folder / corpus)


def test_every_source_has_corpora_with_its_task_and_a_training_split() -> None:
    for mixture in MIXTURES.values():
        for source in mixture.sources:
            for corpus in source.corpora:
                assert source.task in CORPORA[corpus].tasks and "train" in CORPORA[corpus].splits, corpus


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("table2", stage1_pretrain.get_config(data="D")),
        ("table3", stage2_multitask.get_config(data="D")),
        ("debian", quickstart_corpora.get_config(data="D")),
    ],
)
def test_the_folders_of_sources_are_those_that_the_configs_read(name: str, config: Any) -> None:
    mixture = MIXTURES[name]
    sources = {(source.name, source.task, f"D/{mixture.folder}/{source.name}") for source in mixture.sources}
    assert {(entry["name"], entry["task"], entry["records"]) for entry in config.data.mixture} == sources


def test_corpora_without_a_folder_are_left_out_and_the_rest_adds_up(
    build_corpus: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path / "raw", ["sbu", "image_text", "vgqa", "visual_genome", "refcoco", "text", "cc3m"])
    summary = build_mixture("table3", MIXTURES["table3"], f"{tmp_path}/raw", f"{tmp_path}/out", build_corpus)
    assert "laion_en" in summary["missing"] and "sbu" not in summary["missing"]
    assert summary == json.loads((tmp_path / "out/multitask/mixture.json").read_text())
    assert {entry["name"] for entry in summary["entries"]} == {
        "caption",
        "vqa",
        "ref_grounding",
        "grounded_caption",
        "text",
    }
    for entry in summary["entries"]:
        reader = RecordReader(entry["records"], "train", verify=True)
        records = [reader[index] for index in range(len(reader))]
        assert sum(map(sample_count, records)) == round(1e6 * entry["weight"])
        counts = collections.Counter(record.source for record in records)
        for corpus, members in counts.items():
            alone = RecordReader(tmp_path / "out" / corpus / entry["task"], "train")
            assert members == len(alone)
        assert reader.summary["sources"] == dict(counts)
        for shard in Path(entry["records"]).glob("*.array_record-*"):
            assert shard.stat().st_nlink == 2  # no room is taken


def test_a_corpus_that_is_gone_leaves_the_sources(build_corpus: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "raw", ["sbu", "text"])
    arguments = ("table3", MIXTURES["table3"], f"{tmp_path}/raw", f"{tmp_path}/out", build_corpus)
    build_mixture(*arguments)
    assert (tmp_path / "out/multitask/text/manifest.json").exists()
    shutil.rmtree(tmp_path / "raw/text")
    summary = build_mixture(*arguments)
    assert [entry["name"] for entry in summary["entries"]] == ["caption"]
    assert not (tmp_path / "out/multitask/text").exists()


def test_a_run_that_was_ended_continues_to_the_same_bytes(
    build_corpus: Callable[..., Any], contents: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    write(tmp_path / "raw", ["sbu", "text", "visual_genome"])
    table3 = MIXTURES["table3"]
    build_mixture("table3", table3, f"{tmp_path}/raw", f"{tmp_path}/whole/out", build_corpus)
    built = []

    def ended(name: str, folder: str, output: str) -> Any:
        built.append(name)
        if len(built) == 2:
            raise KeyboardInterrupt
        return build_corpus(name, folder, output)

    with pytest.raises(KeyboardInterrupt):
        build_mixture("table3", table3, f"{tmp_path}/raw", f"{tmp_path}/out", ended)
    leftover = tmp_path / "out/multitask/.caption.0123abcd.tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    build_mixture("table3", table3, f"{tmp_path}/raw", f"{tmp_path}/out", build_corpus)
    assert built == ["sbu", "visual_genome"]
    whole, continued = contents(tmp_path / "whole/out/multitask"), contents(tmp_path / "out/multitask")
    assert whole.pop("mixture.json") and continued.pop("mixture.json")  # it names the output
    assert whole == continued and any(name.startswith("caption/") for name in whole)


def test_on_an_object_store_the_server_copies_the_shards(
    build_corpus: Callable[..., Any], gcs: str, tmp_path: Path
) -> None:
    write(tmp_path / "raw", ["sbu", "text"])

    def build_there(name: str, folder: str, output: str) -> Any:
        manifest = build_corpus(name, str(tmp_path / "raw" / name), str(tmp_path / "out" / name))
        for file in storage.files_below(tmp_path / "out" / name):
            storage.write_bytes(f"{output}/{file}", (tmp_path / "out" / name / file).read_bytes())
        return manifest

    for name in ("sbu", "text"):
        storage.write_bytes(f"{gcs}/raw/{name}/raw", b"there")
    for _ in range(2):
        summary = build_mixture("table3", MIXTURES["table3"], f"{gcs}/raw", f"{gcs}/out", build_there)
        folders = [f"{gcs}/out/multitask/{task}" for task in ("caption", "text")]
        assert [entry["records"] for entry in summary["entries"]] == folders
        for entry, corpus in zip(summary["entries"], ("sbu", "text"), strict=True):
            joined = RecordReader(entry["records"], "train", verify=True)
            alone = RecordReader(f"{gcs}/out/{corpus}/{entry['task']}", "train", verify=True)
            assert [record.id for record in joined] == [record.id for record in alone]


def test_a_mixture_without_corpora_is_refused_in_one_sentence(
    build_corpus: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"has no folder of a corpus of table2; it needs some of laion_en, "):
        build_mixture("table2", MIXTURES["table2"], f"{tmp_path}", f"{tmp_path}/out", build_corpus)
    for arguments, words in [
        (["tabel2", "--input=x", "--output=y"], "did you mean 'table2'"),
        (["table2", f"--input={tmp_path}", "--output=y", "--retry"], "neither --split nor --retry"),
        (["table2", f"--input={tmp_path}", "--output=y"], "has no folder of a corpus of table2"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("table2", stage1_pretrain), ("table3", stage2_multitask)])
def test_the_stage_configs_read_the_built_mixture(
    name: str, stage: Any, build_corpus: Callable[..., Any], tmp_path: Path
) -> None:
    corpora = [
        corpus for corpus in MIXTURES[name].corpora if corpus != "html_pages" or any(map(shutil.which, BROWSERS))
    ]
    write(tmp_path / "raw", corpora)
    build_mixture(name, MIXTURES[name], f"{tmp_path}/raw", f"{tmp_path}/data", build_corpus)
    config = load_config(stage.get_config(mesh="cpu", data=f"{tmp_path}/data"))
    numbers = audit(config, samples=300, shown=0, verify=True).numbers
    assert [source["name"] for source in numbers["sources"]] == [source.name for source in MIXTURES[name].sources]
    assert numbers["total"]["corrupt"] == 0


@pytest.mark.slow
def test_the_command_builds_a_mixture_and_then_finds_it_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw", ["kgeography", "pdf_pages"])
    arguments = ["debian", f"--input={tmp_path}/raw", f"--output={tmp_path}/data", "--workers=1"]
    main(arguments)
    first = capsys.readouterr().out
    assert "kgeography" in first and "remaining %" in first and "openclipart" in first
    main(arguments)
    assert capsys.readouterr().out.count("is up to date") == 2
    config = load_config(quickstart_corpora.get_config(data=f"{tmp_path}/data", scale=0.01))
    assert config.train.steps == 20


def test_a_second_run_on_the_folder_of_a_mixture_is_refused(build_corpus: Any, tmp_path: Path) -> None:
    write(tmp_path / "in", ["laion_en"])
    joined = tmp_path / "out" / MIXTURES["table2"].folder
    arguments = ("table2", MIXTURES["table2"], str(tmp_path / "in"), str(tmp_path / "out"), build_corpus)
    with locked(joined, "taken"), pytest.raises(UserError, match=f"another run works on {joined}"):
        build_mixture(*arguments)
    assert not (tmp_path / "out" / "laion_en").exists()
    assert build_mixture(*arguments)["entries"]
