"""Which starting points have seen ChatML, and the warning if a frozen vocabulary would have to learn its tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.checkpoint import layout, lineage
from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint
from qwenvl_jax.config import Config, LoraConfig, SourceConfig, to_dict
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.training.chatml import has_seen_chatml, warn_of_unknown_tokens
from tests.support import tiny_run

DIALOGUES = (SourceConfig("talk", "dialogue", "talk.json", 1.0),)


def of_stage(stage: str, mixture: tuple[SourceConfig, ...] | None = None) -> Config:
    config = tiny_run.make_config()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stage=stage))
    if mixture is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))
    return config


def run(folder: Path, config: Config, decoder_from: dict[str, Any] | None = None) -> StartingPoint:
    lineage.begin(folder, config)
    lineage.write(folder, config, {"vit": None, "resampler": None, "decoder": decoder_from})
    return StartingPoint(str(folder), 4, config, config.train.stage)


def imported(folder: Path, stage: str) -> StartingPoint:
    folder.mkdir()
    if stage:
        artifacts.write_json(folder / layout.IMPORTED_CONFIG, to_dict(of_stage(stage)))
    return StartingPoint(str(folder), 0, of_stage(IMPORT), IMPORT)


def test_a_start_has_seen_chatml_if_it_or_one_before_it_was_trained_on_dialogues(tmp_path: Path) -> None:
    multitask = of_stage("multitask")
    base, chat, unknown = (imported(tmp_path / f"import_{stage}", stage) for stage in ("multitask", "sft", ""))
    origins: dict[str, tuple[dict[str, Any] | None, bool | None]] = {
        "fresh": (None, False),
        "sft": ({"stage": "sft", "path": "gone", "from": {"stage": "fresh"}}, True),
        "older": ({"stage": "multitask", "path": "gone", "from": {"stage": "sft", "from": {"stage": "fresh"}}}, True),
        "base": ({"stage": IMPORT, "path": base.workdir}, False),
        "chat": ({"stage": IMPORT, "path": chat.workdir}, True),
        "unknown": ({"stage": IMPORT, "path": unknown.workdir}, None),
    }
    for name, (origin, seen) in origins.items():
        assert has_seen_chatml(run(tmp_path / f"from_{name}", multitask, origin)) is seen, name
    assert [has_seen_chatml(start) for start in (base, chat, unknown)] == [False, True, None]
    assert has_seen_chatml(run(tmp_path / "own", of_stage("sft"))) is True
    assert has_seen_chatml(run(tmp_path / "mixed", of_stage("multitask", DIALOGUES))) is True


def test_a_frozen_vocabulary_is_warned_of_only_if_it_cannot_know_chatml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(of_stage("sft", DIALOGUES), lora=LoraConfig(rank=4))
    lora = dataclasses.replace(config, train=dataclasses.replace(config.train, trainable=("lora",)))
    both = dataclasses.replace(lora, train=dataclasses.replace(config.train, trainable=("lora", "vocabulary")))
    base, chat = imported(tmp_path / "base", "multitask"), imported(tmp_path / "chat", "sft")

    warn_of_unknown_tokens(lora, base)
    assert f"warning: {base.workdir} was never trained on dialogues" in capsys.readouterr().out
    no_dialogues = dataclasses.replace(lora, data=of_stage("sft").data)
    for silent, start in ((lora, chat), (both, base), (lora, None), (no_dialogues, base)):
        warn_of_unknown_tokens(silent, start)
    assert not capsys.readouterr().out
