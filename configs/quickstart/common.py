"""What the quickstart's stages share: one small model, its vocabulary, one CPU.

Every stage file takes one argument, `DATA,RUNS[,SCALE]`: the folder of the records, the folder of the runs, by
default `data/quickstart,runs/quickstart`, and a factor on the number of steps, by default 1 (tests run the whole
quickstart at a hundredth). docs/quickstart.md says how the numbers were found.
"""

import ml_collections

SIZE_PRETRAIN = 42  # px, 6x6 patches: the quickstart's 224
SIZE_MULTITASK = 84  # px, 12x12 patches: the quickstart's 448

# The tasks of stage 2 and their weights, in the place of Table 3.
MULTITASK_WEIGHTS = {
    "caption": 1.0,
    "vqa": 1.5,
    "grounding": 3.0,
    "ref_grounding": 4.0,
    "grounded_caption": 0.5,
    "ocr": 4.0,
    "text": 0.5,
}


def parse(arg: str | None) -> tuple[str, str, float]:
    """Splits the config argument into (records folder, runs folder, scale)."""
    parts = [part.strip() for part in (arg or "").split(",")]
    if len(parts) > 3:
        raise ValueError(f"the argument {arg!r} has {len(parts)} parts; it is DATA,RUNS,SCALE")
    data, runs, text = (*parts, "", "")[:3]
    try:
        scale = float(text or 1)
    except ValueError:
        scale = 0.0
    if not 0 < scale <= 1000:  # also where it is no number
        raise ValueError(f"the scale {text!r} is no number above 0 and up to 1000")
    return data or "data/quickstart", runs or "runs/quickstart", scale


def scaled(steps: int, scale: float) -> int:
    """The number of steps at a scale, at least four."""
    return max(4, round(steps * scale))


def model() -> ml_collections.ConfigDict:
    """1.9M parameters: the shape of the full model, in small numbers."""
    return ml_collections.ConfigDict(
        dict(
            name="quickstart",
            vit=dict(width=96, layers=3, heads=3, mlp_dim=384, patch_size=7, position_grid=6, layer_norm_eps=1e-6),
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
            ),
        )
    )


def source(data: str, task: str, weight: float) -> dict:
    """One mixture entry; the quickstart keeps one record folder per task."""
    return dict(name=task, task=task, records=f"{data}/{task}", weight=weight)


def base(data: str) -> ml_collections.ConfigDict:
    """A config with everything but the stage's own `data`, `optimizer`, `init` and `train`."""
    return ml_collections.ConfigDict(
        dict(
            model=model(),
            tokenizer=dict(kind="sentencepiece", path=f"{data}/vocabulary/quickstart.model"),
            mesh=dict(data=-1, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0),
            compute=dict(
                compute_dtype="float32",  # CPUs have no fast bfloat16
                frozen_dtype="float32",
                attention="xla",
                remat_vit="none",
                remat_decoder="none",
                unroll_layers=True,
                loss_chunk=4096,
            ),
        )
    )


def optimizer(peak: float, steps: int) -> dict:
    """AdamW with the paper's betas, eps, decay and clip; the rate falls to a tenth.

    No layer-wise decay: it protects a trained ViT, and this one starts from noise.
    """
    return dict(
        peak_learning_rate=peak,
        min_learning_rate=peak / 10,
        warmup_steps=min(150, steps // 10),
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.05,
        clip_norm=1.0,
        vit_layer_decay=1.0,
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
