"""Models under one protocol (protocol.py), and how one is built from its config."""

from __future__ import annotations

__all__ = [
    "CONFIGS",
    "GRUConfig",
    "HRNNConfig",
    "HierTCNConfig",
    "LastItemsConfig",
    "Model",
    "ModelConfig",
    "MovingAverageConfig",
    "PopularityConfig",
    "VectorModel",
    "build",
    "trainable",
]

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hiertcn.models.gru import GRU, GRUConfig
from hiertcn.models.hiertcn import HierTCN, HierTCNConfig
from hiertcn.models.hrnn import HRNN, HRNNConfig
from hiertcn.models.moving_average import MovingAverage, MovingAverageConfig
from hiertcn.models.popularity import Counting, LastItems, LastItemsConfig, Popularity, PopularityConfig
from hiertcn.models.protocol import Model, VectorModel

ModelConfig = HierTCNConfig | HRNNConfig | GRUConfig | MovingAverageConfig | PopularityConfig | LastItemsConfig

_MODELS: dict[type[ModelConfig], Any] = {
    HierTCNConfig: HierTCN,
    HRNNConfig: HRNN,
    GRUConfig: GRU,
    MovingAverageConfig: MovingAverage,
    PopularityConfig: Popularity,
    LastItemsConfig: LastItems,
}
CONFIGS: dict[str, type[ModelConfig]] = {config.name: config for config in _MODELS}


def trainable(config: type[ModelConfig]) -> bool:
    """Whether models of this config learn; the others only count."""
    return bool(_MODELS[config].trainable)


def build(config: ModelConfig, train_events: npt.NDArray[np.int64], seed: int) -> Model:
    """A model over the catalog whose train events are `train_events` [items + 1], initialised under `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = _MODELS[type(config)](len(train_events) - 1, config)
    if isinstance(model, Counting):
        model.count(torch.from_numpy(train_events).float())
    return model
