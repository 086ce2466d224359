"""What the quickstart's stages share: one small model, its vocabulary, one CPU.

Every config of the quickstart takes the same arguments: `data`, the folder of the records; `runs`, the folder of the
runs; `scale`, a factor on the number of steps, by which tests run the whole quickstart at a hundredth of its length.
docs/quickstart.md says how the numbers were found.
"""

import ml_collections

from configs.base import anomalies, checkpoint, watchdog, watching
from configs.meshes import cpu

SIZE_PRETRAIN = 42  # px, 6x6 patches: the quickstart's 224
SIZE_MULTITASK = 63  # px, 9x9 patches: the quickstart's 448

# The folders of stage 2 and their weights, which take the role of Table 3.
MULTITASK_WEIGHTS = {
    "caption": 1.0,
    "vqa": 2.2,
    "map": 1.0,
    "grounding": 2.5,
    "ref_grounding": 6.5,
    "grounded_caption": 0.5,
    "ocr": 2.0,
    "text": 1.0,
}


def scaled(number: int, scale: float) -> int:
    """The number of steps or questions at a scale, at least four.

    Raises:
      ValueError: if the scale is out of range.
    """
    if not 0 < scale <= 1000:  # refuses NaN as well
        raise ValueError(f"the scale {scale} must be above 0 and at most 1000")
    return max(4, round(number * scale))


def model() -> ml_collections.ConfigDict:
    """1.9M parameters: the shape of the full model, in small numbers."""
    return ml_collections.ConfigDict(
        dict(
            name="quickstart",
            vit=dict(
                width=96,
                layers=3,
                heads=3,
                mlp_dim=384,
                patch_size=7,
                position_grid=6,
                layer_norm_eps=1e-6,
                fresh_positions="sincos",
            ),
            resampler=dict(query_grid=4, heads=4, layer_norm_eps=1e-6),
            decoder=dict(
                vocab_size=1024,
                width=128,
                layers=4,
                heads=4,
                mlp_dim=344,
                rope_base=10000.0,
                rms_norm_eps=1e-6,
                train_length=256,
                logn_attention=True,
                dynamic_ntk=True,
                initializer_range=0.113,
            ),
        )
    )


def source(folder: str, task: str, weight: float) -> dict:
    """One mixture entry; the quickstart keeps one record folder per task. Those of `map` are questions."""
    return dict(name=task, task="vqa" if task == "map" else task, records=f"{folder}/{task}", weight=weight)


def tokenizer(folder: str) -> dict:
    """The vocabulary that is built with the records."""
    return dict(kind="sentencepiece", path=f"{folder}/vocabulary/quickstart.model")


def stage(folder: str, *, data: dict, optimizer: dict, init: dict, train: dict) -> ml_collections.ConfigDict:
    """The finished config of a stage.

    Args:
      folder: of the records.
      data: the values of `config.data` that the stages do not share.
      optimizer: see `optimizer`.
      init: see `configs.base.continue_from`.
      train: see `train`.
    """
    config = ml_collections.ConfigDict(
        dict(
            model=model(),
            tokenizer=tokenizer(folder),
            data=dict(accumulation=1, packing_window=32, **data),
            optimizer=optimizer,
            init=init,
            train=train,
            evaluation=dict(every=0, split="heldout", batches=4, mixture=()),
            watching=watching(),
            watchdog=watchdog(),
            anomalies=anomalies(),
            checkpoint=checkpoint(),
        )
    )
    cpu.apply(config)
    return config


def optimizer(peak: float, steps: int, muon_iterations: int = 5) -> dict:
    """Muon for matrices, AdamW with the paper's betas for the rest, decay and clip; the rate falls to a tenth.

    No layer-wise decay: it protects a trained ViT, and this one starts from noise.
    """
    return dict(
        peak_learning_rate=peak,
        min_learning_rate=peak / 10,
        warmup_steps=min(50, steps // 10),
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.05,
        clip_norm=1.0,
        vit_layer_decay=1.0,
        kind="muon",
        muon_momentum=0.95,
        muon_iterations=muon_iterations,
    )


def train(stage: str, trainable: tuple[str, ...], steps: int) -> dict:
    """Seed, logging and checkpoints are the same everywhere."""
    return dict(
        stage=stage,
        trainable=trainable,
        steps=steps,
        seed=0,
        log_every=20,
        checkpoint_every=200,
        keep_checkpoints=2,
    )
