"""The mixtures that one command builds: which corpora make which sources of a stage.

The folders of the sources have the names that `configs/stage1_pretrain.py` and `configs/stage2_multitask.py` read below
their argument `data`, and `configs/quickstart/corpora.py` below its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a stage: the records of one task from some corpora.

    Attributes:
      name: of its record folder.
      task: of its records.
      corpora: names in `corpora.table`, in the order of their shards.
    """

    name: str
    task: str
    corpora: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Some sources, and the folder below the output in which they are."""

    folder: str
    sources: tuple[Source, ...]

    @property
    def corpora(self) -> Sequence[str]:
        """The corpora of all sources, each once."""
        return list(dict.fromkeys(corpus for source in self.sources for corpus in source.corpora))


def _of_tasks(corpora: Mapping[str, tuple[str, ...]]) -> tuple[Source, ...]:
    """One source per task, which has the name of the task."""
    return tuple(Source(task, task, names) for task, names in corpora.items())


# Name of the source in stage 1 -> corpus (paper, Table 2). The in-house data are captions of your own.
_PRETRAIN = {
    "laion_en": "laion_en",
    "laion_coco": "laion_coco",
    "datacomp": "datacomp",
    "coyo": "coyo_700m",
    "cc12m": "cc12m",
    "cc3m": "cc3m",
    "sbu": "sbu",
    "coco_caption": "coco_captions",
    "laion_zh": "laion_zh",
    "in_house_zh": "image_text",
}
_REGIONS = ("grit", "visual_genome", "refcoco", "refcoco_plus", "refcocog")

# Task -> corpora (paper, Table 3).
_MULTITASK = {
    "caption": tuple(corpus for corpus in _PRETRAIN.values() if corpus != "laion_coco"),
    "vqa": ("gqa", "vgqa", "vqav2", "dvqa", "ocr_vqa", "docvqa", "textvqa", "chartqa", "ai2d"),
    "grounding": ("grit",),
    "ref_grounding": _REGIONS,
    "grounded_caption": _REGIONS,
    "ocr": ("synthetic_pages", "pdf_pages", "html_pages"),
    "text": ("text",),
}

# What `python -m data_pipelines.debian` fetches.
_DEBIAN = {
    "caption": ("openclipart", "tuxpaint_stamps"),
    "vqa": ("kgeography",),
    "grounding": ("kgeography",),
    "ref_grounding": ("kgeography",),
    "grounded_caption": ("kgeography",),
    "ocr": ("synthetic_pages", "pdf_pages", "html_pages"),
    "text": ("text",),
}

MIXTURES: dict[str, Mixture] = {
    "table2": Mixture("pretrain", tuple(Source(name, "caption", (corpus,)) for name, corpus in _PRETRAIN.items())),
    "table3": Mixture("multitask", _of_tasks(_MULTITASK)),
    "debian": Mixture("multitask", _of_tasks(_DEBIAN)),
}
