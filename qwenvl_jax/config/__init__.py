"""The config of a run: what it holds (`schema`), how it is read (`parse`), which values it takes (`validation`).

A config file returns an `ml_collections.ConfigDict`; `from_config_dict` turns it into a `Config` and checks every key
and type, `validate` every value, so that a mistake is one sentence before anything is allocated.
"""

from qwenvl_jax.config.parse import FORMER_NAMES, config_hash, from_config_dict, to_dict
from qwenvl_jax.config.schema import (
    ATTENTION_IMPLEMENTATIONS,
    COMPONENTS,
    DTYPES,
    REMAT_POLICIES,
    STAGES,
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
from qwenvl_jax.config.validation import load_config, validate, validate_model

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "COMPONENTS",
    "DTYPES",
    "FORMER_NAMES",
    "REMAT_POLICIES",
    "STAGES",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "InitConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ResamplerConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VitConfig",
    "config_hash",
    "from_config_dict",
    "load_config",
    "to_dict",
    "validate",
    "validate_model",
]
