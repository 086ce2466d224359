"""A position in the data belongs to what the records hold, the vocabulary and the config, not to folders."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.loader import join_states, make_loader
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import SENTENCES, encoded_image, make_record, mixture_of, with_data
from tests.data.source_files import write_jsonl, write_tar, write_tfds

QUERIES = 4


def state_of(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    with make_loader(config, tokenizer) as loader:
        next(loader)
        return json.loads(json.dumps(join_states([loader.state()])))


def test_a_position_follows_its_records_to_another_folder(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    records = [make_record("text", k) for k in range(20)]
    write_records(tmp_path / "a", {"train": records}, name="records")
    state = state_of(mixture_of(run_config, {"only": tmp_path / "a"}, "text"), tokenizer)
    shutil.move(tmp_path / "a", tmp_path / "b")
    with make_loader(mixture_of(run_config, {"only": tmp_path / "b"}, "text"), tokenizer) as loader:
        loader.restore(state)
        next(loader)


CHANGES = ["settings", "records", "order", "vocabulary", "queries"]


@pytest.mark.parametrize("changed", CHANGES)
def test_a_refused_position_names_what_has_changed(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path, changed: str
) -> None:
    """Also where numbers of records and of ids have stayed as they were."""
    records = [make_record("text", k) for k in range(20)]
    write_records(tmp_path / "first", {"train": records}, name="records")
    write_records(tmp_path / "second", {"train": records}, name="records")
    config = mixture_of(run_config, {"first": tmp_path / "first", "second": tmp_path / "second"}, "text")
    state, names = state_of(config, tokenizer), []
    if changed == "settings":
        config, names = with_data(config, seed=99), ["config.data"]
    elif changed == "records":
        other = dataclasses.replace(records[4], content={"text": "something else"})
        write_records(tmp_path / "second", {"train": [*records[:4], other, *records[5:]]}, name="records")
        names = ["the records of source 'second'"]
    elif changed == "order":
        for name in ("first", "second"):
            write_records(tmp_path / name, {"train": records[::-1]}, name="records")
        names = ["the records of source 'first'", "the records of source 'second'"]
    elif changed == "vocabulary":
        path = tmp_path / "other.model"
        tokenizer = train_sentencepiece([*SENTENCES, "other words 9 8 7"], tokenizer.vocab_size, path)
        names = ["the vocabulary"]
    else:
        resampler = dataclasses.replace(config.model.resampler, query_grid=3)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, resampler=resampler))
        names = ["config.data"]
    message = f"another stream: since then {'; '.join(names)} changed; restore"
    with make_loader(config, tokenizer) as loader, pytest.raises(UserError, match=message):
        loader.restore(state)


def test_hosts_can_compare_what_their_streams_depend_on(run_config: Config, tokenizer: Tokenizer) -> None:
    with make_loader(run_config, tokenizer) as a, make_loader(run_config, tokenizer) as b:
        assert a.facts() == b.facts()
    assert len(a.facts()) == 4 + len(run_config.data.mixture)
    assert all(isinstance(value, str) for value in a.facts().values())


@pytest.mark.parametrize("facts", [{}, {"the code that builds the stream": "1", "config.data": "0"}])
def test_a_position_of_an_earlier_version_is_refused_in_one_sentence(
    run_config: Config, tokenizer: Tokenizer, facts: dict[str, str]
) -> None:
    """Those of before there were facts, too."""
    with make_loader(run_config, tokenizer) as loader:
        state = {**loader.state(), "facts": facts}
        if not facts:
            del state["facts"]
        with pytest.raises(UserError, match="another stream: since then the code that builds the stream changed"):
            loader.restore(state)


def test_image_groups_may_be_shared_out_among_other_microbatches(run_config: Config, tokenizer: Tokenizer) -> None:
    """A run continues with another accumulation if its image groups keep their rows and images."""
    first = with_data(run_config, rows_per_step=16, accumulation=2, image_groups=4, streams=2)
    second = with_data(first, accumulation=4, image_groups=2)
    assert (first.data.group_rows, first.data.group_images) == (second.data.group_rows, second.data.group_images)
    with make_loader(first, tokenizer) as loader:
        next(loader)
        state = loader.state()
        expected = next(loader)
    with make_loader(second, tokenizer) as loader:
        loader.restore(state)
        batch = next(loader)
    assert batch.tokens.shape == (4, 4, 160)
    rows = [batch.tokens.reshape(-1, 160), expected.tokens.reshape(-1, 160)]
    assert {row.tobytes() for row in rows[0]} == {row.tobytes() for row in rows[1]}
    other = with_data(first, image_groups=2)
    with make_loader(other, tokenizer) as loader, pytest.raises(UserError, match=r"since then config\.data changed"):
        loader.restore(state)


@pytest.mark.parametrize("kind", ["json", "tar", "tfds"])
def test_other_kinds_of_source_are_known_by_what_they_hold(tmp_path: Path, kind: str) -> None:
    texts = ["a dog", "a cat", "two birds"]

    def source(name: str, texts: list[str]) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(encoded_image(1))
        if kind == "json":
            path = str(write_jsonl(folder / "x.jsonl", [{"image": "a.png", "caption": text} for text in texts]))
        elif kind == "tar":
            members = [
                (f"{k}{end}", m) for k, t in enumerate(texts) for end, m in ((".png", b"x"), (".txt", t.encode()))
            ]
            path = str(write_tar(folder / "x.tar", members))
        else:
            records = [dataclasses.replace(make_record("caption", 0), content={"caption": text}) for text in texts]
            path = write_tfds(folder, records)
        return open_source(SourceConfig("x", "caption", path, 1.0))

    first = source("first", texts)
    assert first.digest() == source("elsewhere", texts).digest()
    assert first.digest() != source("other", [*texts[:2], "three birds"]).digest()
    assert first.digest() != source("fewer", texts[:2]).digest()
