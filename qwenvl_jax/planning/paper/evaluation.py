"""The benchmarks of the paper's Table 9: how many questions each has, and what answering them costs.

The base model (stage 2) and the chat model (stage 3) are asked, if the paper's Tables 4 to 7 have figures of both.
A picture counts with every question about it, although a sweep encodes it once.

Counts of questions were read on the cards of Hugging Face that are named here, in November 2026. The others are those
of the publications and were not counted again; `data_pipelines benchmarks` counts the records (docs/benchmark_data.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from qwenvl_jax.chips import CHIPS, parse_topology
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, forward_flops
from qwenvl_jax.planning.paper.lines import Line, on_chips, span
from qwenvl_jax.planning.predictions import Decoding, Step

TEXT_TOKENS = 42  # of a prompt beside its pictures; assumed
BOTH, CHAT = 2, 1  # checkpoints that the paper has figures of


@dataclasses.dataclass(frozen=True)
class Asked:
    """Benchmarks that are asked in the same way.

    Attributes:
      name: in the table.
      benchmarks: their names in this repository (docs/benchmarks.md).
      questions: of all of them.
      source: where the number of questions comes from.
      tokens: of an answer, assumed within the limits of docs/benchmarks.md; 0 if the options' likelihoods are compared,
        which takes the prompt alone.
      pictures: of a question.
      checkpoints: that are asked.
    """

    name: str
    benchmarks: tuple[str, ...]
    questions: int
    source: str
    tokens: int
    pictures: int = 1
    checkpoints: int = BOTH


TABLE_9 = (
    Asked("Nocaps val", ("nocaps_val",), 4_500, "nocaps.org: nocaps_val_4500_captions.json", 16),
    Asked("Flickr30K karpathy-test", ("flickr30k_karpathy_test",), 1_000, "Karpathy's dataset_flickr30k.json", 16),
    Asked("VQAv2 test-dev", ("vqav2_testdev",), 107_394, "card of HuggingFaceM4/VQAv2", 4),
    Asked("OKVQA val", ("okvqa_val",), 5_046, "card of HuggingFaceM4/OK-VQA", 4),
    Asked("GQA testdev-balanced", ("gqa_testdev",), 12_578, "card of Mineru/GQA; the paper says test-balanced", 4),
    Asked("ScienceQA-Img test", ("scienceqa_img_test",), 2_017, "ScienceQA's problems.json, those with a picture", 0),
    Asked("VizWiz test", ("vizwiz_test",), 8_000, "card of lmms-lab/VizWiz-VQA; the paper says test-dev", 4),
    Asked("TextVQA val", ("textvqa_val",), 5_000, "textvqa.org: TextVQA_0.5.1_val.json", 8),
    Asked("DocVQA test", ("docvqa_test",), 5_188, "card of lmms-lab/DocVQA", 12),
    Asked("ChartQA test", ("chartqa_test_human", "chartqa_test_augmented"), 2_500, "1,250 in each half", 8),
    Asked(
        "OCRVQA test",
        ("ocrvqa_test",),
        100_424,
        "OCR-VQA's dataset.json: 20,796 pictures, about 4.8 questions each",
        12,
    ),
    Asked("AI2Diagram test", ("ai2d_test",), 3_088, "AI2D's ai2d_test_ids.csv; lmms-lab/ai2d has as many", 4),
    Asked(
        "RefCOCO val, testA, testB",
        ("refcoco_val", "refcoco_testA", "refcoco_testB"),
        10_834 + 5_657 + 5_095,
        "sentences of refs(unc).p",
        20,
    ),
    Asked(
        "RefCOCO+ val, testA, testB",
        ("refcoco_plus_val", "refcoco_plus_testA", "refcoco_plus_testB"),
        10_758 + 5_726 + 4_889,
        "sentences of refs(unc).p",
        20,
    ),
    Asked("RefCOCOg val, test", ("refcocog_val", "refcocog_test"), 4_896 + 9_602, "sentences of refs(umd).p", 20),
    Asked("TouchStone en, zh", ("touchstone_en", "touchstone_cn"), 2 * 908, "908 rows in each", 200, checkpoints=CHAT),
    Asked("MME", ("mme",), 2_374, "two questions for each of 1,187 pictures", 4, checkpoints=CHAT),
    # The split agrees with Table 7 of the paper: (62.3 x 14,233 + 39.1 x 5,009) / 19,242 = 56.3, the figure of both.
    Asked("SEED-Bench, images", ("seed_bench",), 14_233, "SEED-Bench.json, types 1 to 9", 0),
    Asked("SEED-Bench, videos", ("seed_bench",), 5_009, "SEED-Bench.json, types 10 to 12", 0, pictures=4),
)
LEFT_OUT = {"grit_refexp": "GRiT, whose number of questions is not known here"}


def lines(kind: str, config: Config, step: Step, decoding: Decoding, price: float) -> Iterator[Line]:
    """Every benchmark of Table 9 on the slice whose decoding was predicted.

    A prompt takes the operations of its forward pass at the utilisation of stage 3, which is assumed, and a token of an
    answer its share of a step of decoding.

    Args:
      kind: of the chips.
      config: of stage 3.
      step, decoding: the predictions.
      price: in dollars per chip and hour.
    """
    topology = parse_topology(decoding.topology)
    peak = CHIPS[kind].peak_flops * topology.chips
    of_token = f"{span(decoding.seconds, '.3g')} s (predicted) / {decoding.batch} rows"
    for asked in TABLE_9:
        answers = asked.questions * asked.checkpoints
        flops = prompt_flops(config, asked.pictures)
        fast, slow = (
            answers * (flops / (mfu * peak) + asked.tokens * seconds / decoding.batch)
            for mfu, seconds in zip(step.mfu, decoding.seconds, strict=True)
        )
        count = f"{asked.questions:,} questions x {asked.checkpoints} checkpoint{'s' * (asked.checkpoints > 1)}"
        of_prompt = (
            f"{flops / 1e12:.3g} TFLOP of the prompt / ({span(step.mfu, '.3g')} of stage 3's MFU, assumed, x "
            f"{peak / 1e12:,.0f} TFLOP/s)"
        )
        of_answer = f" + {asked.tokens} tokens (assumed) x {of_token}" if asked.tokens else ""
        formula = f"{count} x ({of_prompt}{of_answer})"
        yield on_chips("evaluation", f"{asked.name} on {topology.name}", formula, topology.chips, (fast, slow), price)


def prompt_flops(config: Config, pictures: int) -> float:
    """Operations of the forward pass of a prompt, of which the last token alone needs logits."""
    tokens = pictures * config.model.resampler.image_tokens + TEXT_TOKENS
    return sum(product.forward for product in forward_flops(config, Work(tokens, tokens, 1, pictures)))
