"""Nine kinds of questions about real pictures from Debian packages, for any machine: 19,569 questions.

python -m data_pipelines.debian --evaluation --output=data/debian --cache=data/cache
python -m qwenvl_jax.evaluate --config=configs/evaluation/debian.py

By default the models of the quickstart are asked, in the prompts of their training. `prompts=released` asks as the
released scripts do; `limit=100` asks only about the first hundred pictures of each kind.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.evaluation import common
from configs.quickstart import common as quickstart

FOLDERS = (
    "captions", "captions_zh", "choices", "yes_no", "maps", "phrases", "phrases_zh", "words", "charts", "documents",
    "capitals",
)  # fmt: skip
# A small model knows only the prompts that it was trained with; those of other kinds are the same in both.
TRAINED = {
    "captions": "<img>Generate the caption in {language}:",
    "captions_zh": "<img>Generate the caption in {language}:",
}


@named_arguments
def get_config(
    data: str = "data/debian",
    runs: str = "runs/quickstart",
    checkpoints: str = "stage2_multitask+stage3_sft",
    mesh: str = "cpu",
    kinds: str = "",
    prompts: str = "training",
    limit: float = 0.0,
    vocabulary: str = "data/quickstart/vocabulary/quickstart.model",
    image_size: float = float(quickstart.SIZE_MULTITASK),
) -> ml_collections.ConfigDict:
    common.one_of(prompts, {"training": 0, "released": 0}, "prompts")
    asked = []
    for name in kinds.split("+") if kinds else FOLDERS:
        common.one_of(name, dict.fromkeys(FOLDERS, ""), "kind")
        values = common.benchmark(f"debian_{name}_test", f"debian_{name}_test", data)
        if prompts == "training" and name in TRAINED:
            values["prompt"] = TRAINED[name]
        if name == "capitals":
            values["exemplars"] = f"{data}/debian_capitals_dev/evaluation"
        asked.append(values)
    return common.sweep(
        asked,
        name="debian",
        runs=runs,
        checkpoints=checkpoints,
        mesh=mesh,
        vocabulary=vocabulary,
        image_size=image_size,
        limit=limit,
    )
