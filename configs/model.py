"""Architectures: the released Qwen-VL and a tiny one of the same shape."""

import ml_collections


def qwen_vl_9b6() -> ml_collections.ConfigDict:
    """Qwen-VL, 9,656,935,168 parameters (paper, Table 1; released config.json and visual.py)."""
    return ml_collections.ConfigDict(
        dict(
            name="qwen_vl_9b6",
            # OpenCLIP ViT-bigG-14. 8192 = int(1664 * 4.9231). The stored position table is 16x16 (224 px) in all
            # stages; 448 px interpolates it. eps 1e-6 is the release's, OpenCLIP itself has 1e-5.
            vit=dict(
                width=1664,
                layers=48,
                heads=16,
                mlp_dim=8192,
                patch_size=14,
                position_grid=16,
                layer_norm_eps=1e-6,
                window=0,  # 16 is the ablation of E.3: attention within 224 px, but for every fourth layer
                global_every=4,
            ),
            # 256 queries, heads of 128 (released visual.py: output_dim // 128).
            resampler=dict(query_grid=16, heads=32, layer_norm_eps=1e-6),
            # Qwen-7B. intermediate_size 22016 in the release is the sum of gate and up.
            decoder=dict(
                vocab_size=151936,
                width=4096,
                layers=32,
                heads=32,
                mlp_dim=11008,
                rope_base=10000.0,
                rms_norm_eps=1e-6,
                train_length=2048,
                logn_attention=True,
                dynamic_ntk=True,
                initializer_range=0.02,
            ),
        )
    )


def tiny() -> ml_collections.ConfigDict:
    """The same graph in a few thousand parameters, for tests and for trying a command."""
    return ml_collections.ConfigDict(
        dict(
            name="tiny",
            vit=dict(width=32, layers=2, heads=2, mlp_dim=64, patch_size=14, position_grid=2, layer_norm_eps=1e-6),
            resampler=dict(query_grid=2, heads=2, layer_norm_eps=1e-6),
            decoder=dict(
                vocab_size=512,
                width=32,
                layers=2,
                heads=2,
                mlp_dim=48,
                rope_base=10000.0,
                rms_norm_eps=1e-6,
                train_length=64,
                logn_attention=True,
                dynamic_ntk=True,
                initializer_range=0.02,
            ),
        )
    )
