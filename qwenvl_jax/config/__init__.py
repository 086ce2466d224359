"""The config of a run: its keys and their values (`schema`, `constraints`) and how it is read (`parse`).

A config file returns an `ml_collections.ConfigDict`; `load_config` turns it into a `Config` and checks every key, type
and value, so that a mistake is one sentence before anything is allocated.
"""

from qwenvl_jax.config.constraints import Mark, former_names, marks, validate
from qwenvl_jax.config.parse import FORMER_KEYS, config_hash, from_config_dict, load_config, to_dict
from qwenvl_jax.config.schema import (
    ATTENTION_IMPLEMENTATIONS,
    COMPONENTS,
    DTYPES,
    REMAT_POLICIES,
    STAGES,
    TOWERS,
    ComputeConfig,
    Config,
    DataConfig,
    DecoderConfig,
    InitConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ResamplerConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    VitConfig,
)

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "COMPONENTS",
    "DTYPES",
    "FORMER_KEYS",
    "REMAT_POLICIES",
    "STAGES",
    "TOWERS",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "InitConfig",
    "Mark",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ResamplerConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VitConfig",
    "config_hash",
    "former_names",
    "from_config_dict",
    "load_config",
    "marks",
    "to_dict",
    "validate",
]
