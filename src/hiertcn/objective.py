"""What training makes small: the loss that the config names, with the negatives it needs."""

from __future__ import annotations

__all__ = ["LossConfig", "Objective", "check_agreement", "scores_of"]

from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from torch import Tensor

from hiertcn.config import Config, Positive
from hiertcn.errors import InputError
from hiertcn.impressions import MOST
from hiertcn.losses import RANKING, cross_entropy, l2, ranking_loss, sampled_softmax
from hiertcn.models import HierTCNConfig, Model, ModelConfig, VectorConfig, VectorModel
from hiertcn.models.boosts import among, of_rows, spread
from hiertcn.negatives import Drawn, NegativeSampler, OwnNegatives
from hiertcn.ragged import SessionBatch

# One list, so that an error shows it as one; the last six are RankingLoss.
Loss = Literal[
    "cross_entropy",
    "sampled_softmax",
    "l2",
    "nce",
    "bpr",
    "bpr_sigmoid",
    "hinge",
    "hinge_sigmoid",
    "hinge_logsigmoid",
]


class LossConfig(Config):
    """The loss of each target.

    …_negatives:            of sampled_softmax: drawn uniformly, by train events^alpha, and the batch's other targets
    own_negatives, drawn:   of the ranking losses: each target's, what was shown beside it, or else so many drawn ones
    shown_negatives:        false: they are drawn for every target, whatever was shown beside it
    delta, nce_weight:      the margin of the hinges, the weight of nce's negatives
    """

    loss: Loss = "cross_entropy"
    uniform_negatives: Annotated[int, Field(ge=0)] = 256
    popular_negatives: Annotated[int, Field(ge=0)] = 256
    popularity_alpha: Annotated[float, Field(ge=0, le=1)] = 0.75
    in_batch_negatives: bool = True
    own_negatives: Annotated[int, Field(ge=1, le=MOST)] = MOST
    drawn: Drawn = "popular"
    shown_negatives: bool = True
    delta: Annotated[float, Field(ge=0)] = 0.1
    nce_weight: Positive = 1.0

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        drawn = self.uniform_negatives or self.popular_negatives or self.in_batch_negatives
        if self.loss == "sampled_softmax" and not drawn:
            raise ValueError("sampled_softmax should have negatives: uniform, popular or in-batch ones")
        return self


def check_agreement(model: ModelConfig, loss: LossConfig) -> None:
    """Raises InputError for a loss that would train another order than the model ranks by."""
    if isinstance(model, HierTCNConfig) and model.head == "softmax" and loss.loss in ("l2", *RANKING):
        raise InputError(
            f"loss {loss.loss!r} compares queries with item vectors, and a softmax head gives none. Set head to "
            "embedding, or train by cross_entropy or sampled_softmax."
        )
    if isinstance(model, HierTCNConfig) and model.boosts and loss.loss in ("l2", *RANKING):
        raise InputError(
            f"loss {loss.loss!r} does not learn how much to boost single items. Train by cross_entropy or "
            "sampled_softmax, or set trends and follows to [] and repeats to 0."
        )
    if isinstance(model, VectorConfig) and model.ranking == "l2" and loss.loss in RANKING and not model.unit:
        raise InputError(
            f"loss {loss.loss!r} takes queries at length 1, and by distance the length of a query changes what is "
            "nearest. Set unit = true, or ranking to inner."
        )


def scores_of(config: LossConfig, targets: int, items: int, width: int) -> int:
    """How many scores a batch of `targets` over `items` items has at once; or where those are few, how many numbers the
    vectors have that it gathers for them, `width` each."""
    if config.loss == "cross_entropy":
        return targets * items
    if config.loss == "sampled_softmax":
        return targets * (config.uniform_negatives + config.popular_negatives + targets * config.in_batch_negatives)
    return targets * (config.own_negatives + 1) * width


class Objective:
    """The loss of a batch, a scalar that is the mean over its targets."""

    def __init__(self, train_events: npt.NDArray[np.int64], config: LossConfig) -> None:
        self._config = config
        self._shared = NegativeSampler(
            train_events,
            config.uniform_negatives,
            config.popular_negatives,
            config.popularity_alpha,
            config.in_batch_negatives,
        )
        self._own = OwnNegatives(train_events, config.own_negatives, config.drawn, config.popularity_alpha)

    def __call__(self, model: Model, queries: Tensor, batch: SessionBatch, rng: np.random.Generator) -> Tensor:
        """Of `queries` [T, Q], those of the batch's targets; negatives are drawn from `rng`."""
        assert isinstance(model, VectorModel)
        config, targets, lookup = self._config, batch.targets, model.lookup
        queries, boosts = model.parted(queries)
        if config.loss == "cross_entropy":
            dense = None if boosts is None else spread(boosts, model.items_in_catalog)
            return cross_entropy(queries, targets, model.vectors, model.bias, dense)
        if config.loss == "sampled_softmax":
            drawn, both = self._shared.draw(targets, rng), None
            if boosts is not None:
                both = of_rows(boosts, targets.unsqueeze(1)).squeeze(1), among(boosts, drawn.rows)
            return sampled_softmax(queries, targets, lookup, drawn, both)
        if config.loss == "l2":
            return l2(queries, targets, lookup)
        shown = batch.shown if config.shown_negatives else batch.shown[:, :0]
        negatives = self._own.draw(targets, shown, rng)
        return ranking_loss(config.loss, queries, targets, negatives, model.score_rows, config.delta, config.nce_weight)
