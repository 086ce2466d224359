"""What the sweeps over published benchmarks share: checkpoints, meshes of one host, and the tables of the paper.

Records are the folders that `python -m data_pipelines benchmarks --input=RAW --output=data/benchmarks` writes:
`<data>/<corpus>_<split>/evaluation`.
"""

from typing import Any

import ml_collections

# Benchmark -> its folder below the argument `data`, by table of the paper. "more" has those without a figure in it.
TABLES = {
    "4": {
        "nocaps_val": "nocaps_val",
        "flickr30k_karpathy_test": "flickr30k_test",
        "vqav2_val": "vqav2_val",
        "vqav2_testdev": "vqav2_test_dev",
        "okvqa_val": "okvqa_val",
        "gqa_testdev": "gqa_testdev",
        "scienceqa_img_test": "scienceqa_test",
        "vizwiz_val": "vizwiz_val",
        "vizwiz_test": "vizwiz_test",
    },
    "5": {
        "textvqa_val": "textvqa_val",
        "docvqa_val": "docvqa_val",
        "docvqa_test": "docvqa_test",
        "chartqa_test_human": "chartqa_test_human",
        "chartqa_test_augmented": "chartqa_test_augmented",
        "ai2d_test": "ai2d_test",
        "ocrvqa_val": "ocr_vqa_val",
        "ocrvqa_test": "ocr_vqa_test",
    },
    "6": {
        "refcoco_val": "refcoco_val",
        "refcoco_testA": "refcoco_test_a",
        "refcoco_testB": "refcoco_test_b",
        "refcoco_plus_val": "refcoco_plus_val",
        "refcoco_plus_testA": "refcoco_plus_test_a",
        "refcoco_plus_testB": "refcoco_plus_test_b",
        "refcocog_val": "refcocog_val",
        "refcocog_test": "refcocog_test",
        "grit_refexp": "grit_refexp_test",
    },
    "7": {
        "touchstone_en": "touchstone_en",
        "touchstone_cn": "touchstone_zh",
        "seed_bench": "seed_bench_test",
        "mme": "mme_test",
    },
    "11": {"mmlu_test": "mmlu_test", "cmmlu_test": "cmmlu_test", "ceval_val": "ceval_val"},
    "more": {
        "infovqa_val": "infovqa_val",
        "infovqa_test": "infovqa_test",
        "mmbench_dev": "mmbench_dev",
        "mmbench_test": "mmbench_test",
    },
}
# The folder from which a benchmark that has exemplars by default takes them.
EXEMPLARS = {"mmlu_test": "mmlu_dev", "cmmlu_test": "cmmlu_dev", "ceval_val": "ceval_dev"}

# Per host: chips that share one copy of the weights (19.3 GB in bfloat16), and prompts that are answered together.
MESHES: dict[str, dict[str, Any]] = {
    "cpu": dict(tensor=1, batch_size=8, dtype=""),
    "gpu": dict(tensor=1, batch_size=32, dtype="bfloat16"),
    "v4": dict(tensor=2, batch_size=32, dtype="bfloat16"),
    "v5e": dict(tensor=4, batch_size=32, dtype="bfloat16"),
    "v5p": dict(tensor=1, batch_size=64, dtype="bfloat16"),
    "v6e": dict(tensor=2, batch_size=32, dtype="bfloat16"),
    "tpu7x": dict(tensor=1, batch_size=64, dtype="bfloat16"),
}


def sweep(
    benchmarks: list[dict],
    *,
    name: str,
    runs: str,
    checkpoints: str,
    mesh: str,
    vocabulary: str,
    image_size: float,
    limit: float,
    prompts_per_batch: float = 0.0,
) -> ml_collections.ConfigDict:
    """The config of a sweep.

    Args:
      benchmarks: values of `BenchmarkConfig`.
      name: of the folder for the results, below `<runs>/evaluation`.
      runs: the folder of the runs.
      checkpoints: folders of runs or imported models with + between them; relative ones are below `runs`.
      mesh: one of MESHES.
      vocabulary: a SentencePiece model; "" is the vocabulary of Qwen.
      image_size: pixels of an image's side.
      limit: only so many records of each benchmark are asked; 0 asks all.
      prompts_per_batch: instead of that of the mesh, for long prompts; 0 keeps it.

    Raises:
      ValueError: if there is no such mesh.
    """
    settings = one_of(mesh, MESHES, "mesh")
    kind = dict(kind="sentencepiece", path=vocabulary) if vocabulary else dict(kind="qwen", path="")
    folders = [part if "/" in part else f"{runs}/{part}" for part in checkpoints.split("+")]
    return ml_collections.ConfigDict(
        dict(
            checkpoints=tuple(
                dict(name=folder.rstrip("/").rpartition("/")[2], workdir=folder, image_size=int(image_size), step=-1)
                for folder in folders
            ),
            tokenizer=kind,
            benchmarks=tuple(benchmark | dict(limit=int(limit)) for benchmark in benchmarks),
            batch_size=int(prompts_per_batch) or settings["batch_size"],
            prompt_style="released",
            output=f"{runs}/evaluation/{name}",
            mesh=dict(data=-1, fsdp=1, tensor=settings["tensor"], slices=1, max_replicated_bytes=0),
            dtype=settings["dtype"],
        )
    )


def benchmark(name: str, folder: str, data: str) -> dict:
    """One benchmark as the paper asks it."""
    values = dict(name=name, records=f"{data}/{folder}/evaluation")
    if name in EXEMPLARS:
        values |= dict(exemplars=f"{data}/{EXEMPLARS[name]}/evaluation")
    return values


def one_of(value: str, known: dict, what: str) -> dict:
    """The entry of this name. Raises ValueError if there is none."""
    if value not in known:
        raise ValueError(f"the {what} {value!r} is not one of {', '.join(known)}")
    return known[value]
