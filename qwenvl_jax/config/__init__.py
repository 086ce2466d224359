"""The config of a run: its keys (`schema`, `model_schema`), values (`values`, `constraints`) and reader (`parse`).

A config file returns an `ml_collections.ConfigDict`; `load_config` turns it into a `Config` and checks every key, type
and value, so that a mistake is one sentence before anything is allocated.
"""

from qwenvl_jax.config.anomalies import AnomaliesConfig
from qwenvl_jax.config.checkpoint_schema import CheckpointConfig
from qwenvl_jax.config.constraints import Mark, former_names, marks, validate
from qwenvl_jax.config.lora import LORA_TARGETS, QUANTISED_TARGETS, RELEASED_TARGETS, LoraConfig
from qwenvl_jax.config.model_schema import DecoderConfig, ModelConfig, ResamplerConfig, VitConfig
from qwenvl_jax.config.parse import FORMER_KEYS, config_hash, from_config_dict, load_config, to_dict
from qwenvl_jax.config.schema import (
    ATTENTION_IMPLEMENTATIONS,
    COMPONENTS,
    STAGES,
    TOWERS,
    TRAINABLE,
    ComputeConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    InitConfig,
    MeshConfig,
    OptimizerConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from qwenvl_jax.config.values import DTYPES, REMAT_POLICIES
from qwenvl_jax.config.watchdog import WatchdogConfig
from qwenvl_jax.config.watching import WatchingConfig

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "COMPONENTS",
    "DTYPES",
    "FORMER_KEYS",
    "LORA_TARGETS",
    "QUANTISED_TARGETS",
    "RELEASED_TARGETS",
    "REMAT_POLICIES",
    "STAGES",
    "TOWERS",
    "TRAINABLE",
    "AnomaliesConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "EvaluationConfig",
    "InitConfig",
    "LoraConfig",
    "Mark",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ResamplerConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "VitConfig",
    "WatchdogConfig",
    "WatchingConfig",
    "config_hash",
    "former_names",
    "from_config_dict",
    "load_config",
    "marks",
    "to_dict",
    "validate",
]
