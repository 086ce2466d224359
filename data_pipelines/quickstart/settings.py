"""The settings of the quickstart's data set; its bytes depend on them and on the digests of its sources alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from data_pipelines.quickstart.ocr_pictures import OcrSettings
from data_pipelines.quickstart.scenes import SceneSettings
from data_pipelines.quickstart.word_fonts import FONT_SETS
from qwenvl_jax.runtime.errors import UserError

SOURCES = ("auto", "tuxpaint", "rendered")
# To be raised whenever the same settings produce other bytes.
PIPELINE_VERSION = 11


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """One data set.

    Attributes:
      source: "tuxpaint" (fails if it cannot be fetched), "rendered" (our drawings, no network), or "auto": the
        first if it is available, else the second.
      seed: of all random choices.
      train: scenes in the train split, and records of each task (`text` has more: see `texts_per_scene`).
      heldout: the same for the held-out split; its compositions never occur in train.
      zh_share: share of captions, OCR pictures, sentences and dialogues that is Chinese.
      samples_per_picture: samples of a train record at most; held-out records have one, as an evaluation needs it.
      texts_per_scene: texts in train for every scene; held-out scenes have one.
      vocab_size: ids of the SentencePiece vocabulary, special tokens included.
      records_per_shard: records of one task in one file; a shard is also the unit of work.
      stamps: ids to use instead of those that the rule selects.
      fonts: the set of `word_fonts.FONT_SETS` that words are drawn with.
    """

    source: str = "auto"
    seed: int = 0
    train: int = 12_000
    heldout: int = 200
    zh_share: float = 0.2
    samples_per_picture: int = 4
    texts_per_scene: int = 2
    vocab_size: int = 900
    records_per_shard: int = 1_000
    stamps: tuple[str, ...] = ()
    fonts: str = "dejavu"
    # Found by experiment (docs/log.md): a small model can learn this in ten minutes on two cores.
    scene: SceneSettings = dataclasses.field(
        default_factory=lambda: SceneSettings(
            stamp_count=16, max_objects=2, min_size=0.45, max_size=0.7, margin_px=10, grid_px=5
        )
    )
    ocr: OcrSettings = dataclasses.field(default_factory=lambda: OcrSettings(max_words=1, grid_px=5))

    def check(self) -> QuickstartSettings:
        """Returns itself; raises UserError for values that cannot work."""
        if self.source not in SOURCES:
            raise UserError(f"source {self.source!r} is unknown; choose {', '.join(SOURCES)}")
        if self.fonts not in FONT_SETS:
            raise UserError(f"fonts {self.fonts!r} is unknown; choose {', '.join(FONT_SETS)}")
        if self.train < 1 or self.heldout < 1 or self.records_per_shard < 2:
            raise UserError("train and heldout must be at least 1, records_per_shard at least 2")
        if not 0 <= self.zh_share <= 1 or self.seed < 0:
            raise UserError("zh_share must be in [0, 1] and seed must not be negative")
        if self.samples_per_picture < 1 or self.texts_per_scene < 1:
            raise UserError("samples_per_picture and texts_per_scene must be at least 1")
        if self.vocab_size < 301:
            raise UserError(f"vocab_size {self.vocab_size} has no room for bytes and special tokens; give at least 301")
        if self.stamps and len(self.stamps) < 2 * self.scene.max_objects:
            raise UserError(f"{len(self.stamps)} stamps are too few for scenes of {self.scene.max_objects} objects")
        self.scene.check()
        self.ocr.check()
        return self

    def count(self, split: str) -> int:
        """The number of scenes in a split."""
        return self.train if split == "train" else self.heldout

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, with the version of the pipeline."""
        return {**json.loads(json.dumps(dataclasses.asdict(self))), "pipeline_version": PIPELINE_VERSION}

    def digest(self, sources: Mapping[str, str]) -> str:
        """Twelve hex digits that change with any setting and with any of the sources' digests."""
        value = {**self.as_json(), "sources": dict(sources)}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
