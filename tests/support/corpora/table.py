"""The writer of a small corpus for every entry of `data_pipelines.corpora.table`, with all its splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.corpora import annotated, benchmarks, captions, grounded, maps, rendered, texts, web

# (folder) -> writes the corpus into it, the same bytes every time. Sorted by name.
FIXTURES: dict[str, Callable[[Path], None]] = {
    "ai2d": annotated.write_ai2d,
    "cc12m": captions.write_cc12m,
    "cc3m": captions.write_cc3m,
    "ceval": benchmarks.write_ceval,
    "chartqa": annotated.write_chartqa,
    "cmmlu": benchmarks.write_cmmlu,
    "coco_captions": captions.write_coco_captions,
    "coco_karpathy": captions.write_coco_karpathy,
    "coyo_700m": web.write_coyo_700m,
    "datacomp": web.write_datacomp,
    "docvqa": annotated.write_docvqa,
    "dvqa": annotated.write_dvqa,
    "flickr30k": captions.write_flickr30k,
    "gqa": annotated.write_gqa,
    "grit": grounded.write_grit,
    "grit_refexp": benchmarks.write_grit_refexp,
    "html_pages": rendered.write_html_pages,
    "image_text": web.write_image_text,
    "infovqa": annotated.write_infovqa,
    "kgeography": maps.write_kgeography,
    "laion_coco": web.write_laion_coco,
    "laion_en": web.write_laion_en,
    "laion_zh": web.write_laion_zh,
    "llava": texts.write_llava,
    "mmbench": benchmarks.write_mmbench,
    "mme": benchmarks.write_mme,
    "mmlu": benchmarks.write_mmlu,
    "nocaps": captions.write_nocaps,
    "ocr_vqa": annotated.write_ocr_vqa,
    "okvqa": annotated.write_okvqa,
    "openclipart": web.write_image_text,
    "pdf_pages": rendered.write_pdf_pages,
    "qwen_vl_dialogues": texts.write_qwen_vl_dialogues,
    "refcoco": grounded.write_refcoco,
    "refcoco_plus": grounded.write_refcoco_plus,
    "refcocog": grounded.write_refcocog,
    "sbu": captions.write_sbu,
    "scienceqa": benchmarks.write_scienceqa,
    "seed_bench": benchmarks.write_seed_bench,
    "st_vqa": annotated.write_st_vqa,
    "synthdog_en": texts.write_synthdog_en,
    "synthdog_zh": texts.write_synthdog_zh,
    "synthetic_pages": rendered.write_synthetic_pages,
    "text": texts.write_text,
    "textcaps": captions.write_textcaps,
    "textvqa": annotated.write_textvqa,
    "touchstone": benchmarks.write_touchstone,
    "tuxpaint_stamps": web.write_image_text,
    "vgqa": annotated.write_vgqa,
    "visual_genome": annotated.write_visual_genome,
    "vizwiz": annotated.write_vizwiz,
    "vqav2": annotated.write_vqav2,
}
