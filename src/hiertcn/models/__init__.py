"""Models under one protocol (protocol.py), and how one is built from its config."""

from __future__ import annotations

__all__ = [
    "CONFIGS",
    "GRUConfig",
    "HRNNConfig",
    "HierTCNConfig",
    "ItemKNNConfig",
    "LastItemsConfig",
    "MaxItemConfig",
    "MemoryModel",
    "Model",
    "ModelConfig",
    "MostFrequentConfig",
    "MovingAverageConfig",
    "PopularityConfig",
    "SASRecConfig",
    "SKNNConfig",
    "SequentialRulesConfig",
    "TCNConfig",
    "TrendingConfig",
    "VARConfig",
    "VectorConfig",
    "VectorModel",
    "build",
    "remembers",
    "resolved",
    "trainable",
]

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hiertcn.errors import InputError
from hiertcn.models.flat_tcn import FlatTCN, TCNConfig
from hiertcn.models.gru import GRU, GRUConfig
from hiertcn.models.hiertcn import HierTCN, HierTCNConfig
from hiertcn.models.hrnn import HRNN, HRNNConfig
from hiertcn.models.max_item import MaxItem, MaxItemConfig
from hiertcn.models.memory import MemoryModel
from hiertcn.models.moving_average import MovingAverage, MovingAverageConfig
from hiertcn.models.popularity import (
    Counting,
    LastItems,
    LastItemsConfig,
    MostFrequent,
    MostFrequentConfig,
    Popularity,
    PopularityConfig,
)
from hiertcn.models.protocol import Model, VectorConfig, VectorModel
from hiertcn.models.rules import ItemKNN, ItemKNNConfig, SequentialRules, SequentialRulesConfig
from hiertcn.models.sasrec import SASRec, SASRecConfig
from hiertcn.models.sknn import SKNN, SKNNConfig
from hiertcn.models.trending import Trending, TrendingConfig
from hiertcn.models.var import VAR, VARConfig
from hiertcn.vectors import Vectors

ModelConfig = (
    HierTCNConfig
    | HRNNConfig
    | GRUConfig
    | TCNConfig
    | SASRecConfig
    | VARConfig
    | MovingAverageConfig
    | MaxItemConfig
    | MostFrequentConfig
    | LastItemsConfig
    | PopularityConfig
    | ItemKNNConfig
    | SequentialRulesConfig
    | SKNNConfig
    | TrendingConfig
)

_MODELS: dict[type[ModelConfig], Any] = {
    HierTCNConfig: HierTCN,
    HRNNConfig: HRNN,
    GRUConfig: GRU,
    TCNConfig: FlatTCN,
    SASRecConfig: SASRec,
    VARConfig: VAR,
    MovingAverageConfig: MovingAverage,
    MaxItemConfig: MaxItem,
    MostFrequentConfig: MostFrequent,
    LastItemsConfig: LastItems,
    PopularityConfig: Popularity,
    ItemKNNConfig: ItemKNN,
    SequentialRulesConfig: SequentialRules,
    SKNNConfig: SKNN,
    TrendingConfig: Trending,
}
CONFIGS: dict[str, type[ModelConfig]] = {config.name: config for config in _MODELS}


def resolved(config: ModelConfig, vectors: Vectors | None) -> ModelConfig:
    """The config with its `vectors` chosen where it leaves that open: fixed if the catalog has some, else learned."""
    if not isinstance(config, VectorConfig) or config.vectors is not None:
        return config
    softmax = isinstance(config, HierTCNConfig) and config.head == "softmax"
    how = "learned" if vectors is None or softmax else "fixed"
    return type(config)(**{**config.model_dump(), "vectors": how})


def trainable(config: ModelConfig) -> bool:
    """Whether a model of this config learns anything; the others only count, or average what is given."""
    averages = isinstance(config, MovingAverageConfig) and config.vectors == "fixed"
    return bool(_MODELS[type(config)].trainable) and not averages


def remembers(config: ModelConfig) -> bool:
    """Whether a model of this config takes the train sessions in, and learns nothing by gradients."""
    return issubclass(_MODELS[type(config)], MemoryModel)


def build(config: ModelConfig, train_events: npt.NDArray[np.int64], seed: int, vectors: Vectors | None = None) -> Model:
    """A model over the catalog whose train events are `train_events` [items + 1], initialised under `seed`.

    vectors: [items + 1, G], those of the catalog; used unless `config.vectors` is "learned" (or None, see `resolved`)
    """
    how = (config.vectors or "learned") if isinstance(config, VectorConfig) else "learned"
    how = "fixed" if isinstance(config, MaxItemConfig) else how
    if how != "learned" and vectors is None:
        raise InputError(
            f"The model is to use the items' own vectors ({how}), but the catalog holds none. Prepare the log with "
            "them, or set vectors to learned."
        )
    given = () if how == "learned" else (torch.from_numpy(vectors),)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = _MODELS[type(config)](len(train_events) - 1, config, *given)
    if isinstance(model, Counting):
        model.count(torch.from_numpy(train_events).float())
    return model
