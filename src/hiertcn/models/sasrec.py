"""SASRec: causal self-attention over a user's last items, without sessions (Kang & McAuley, ICDM 2018)."""

from __future__ import annotations

__all__ = ["SASRec", "SASRecConfig"]

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hiertcn.config import Count, Dropout
from hiertcn.models.protocol import VectorConfig
from hiertcn.models.windowed import OneSequence
from hiertcn.sequences import Continued


class SASRecConfig(VectorConfig):
    """window: the last items that each of the `layers` looks at, the latest included     heads: that share `dim`"""

    name: ClassVar[str] = "sasrec"

    window: Annotated[int, Field(ge=2, le=4096)] = 50
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    heads: Count = 1
    dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads should divide dim, {self.dim}")
        return self


class SASRec(OneSequence):
    """u = the last layer after the latest item; where items come with vectors of their own, a linear map of it.

    Differs from the paper: a layer attends to the last `window` items of its input wherever these are, and instead of
    learned absolute positions there is a learned bias for each head and distance (Raffel et al., 2020), which all
    layers share; so a query is a function of the last layers · (window − 1) + 1 items, which are the state, and
    following a person event by event is exact. A layer normalises all its input (the paper: queries only). Losses are
    those of all models here.
    """

    def __init__(self, items: int, config: SASRecConfig, given: Tensor | None = None) -> None:
        super().__init__(items, config.layers * (config.window - 1) + 1, config, given)
        self.config = config
        self.width = config.dim
        # Not nn.TransformerEncoder, which copies one layer: all would start with the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(config.dim, config.heads, config.dim, config.dropout, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.distance = nn.Parameter(torch.zeros(config.heads, config.window))
        self.head = nn.Identity() if given is None else nn.Linear(config.dim, self.items.query_size)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, sequences: Continued) -> Tensor:
        # In pieces: attention over whole sequences would take the square of the longest of memory.
        context = self.state_size - 1
        elements, place = sequences.pieces(context, context)
        length, pieces = elements.shape
        if not length:
            return self.norm.weight.new_zeros(0, self.width)
        mask = self._mask(length)
        mask = mask[0] if len(mask) == 1 else mask.repeat(pieces, 1, 1)
        # The scale is the paper's code's: at length 1 the vectors would be small beside what layers add.
        given = self.dropout(self.items(sequences.rows) * self.width**0.5)
        hidden = given.index_select(0, elements.flatten()).view(length, pieces, -1)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask)
        out: Tensor = self.norm(hidden.flatten(0, 1).index_select(0, place))
        return out

    def _mask(self, length: int) -> Tensor:
        """[heads, length, length]: what is added to each score of attention."""
        at = torch.arange(length, device=self.distance.device)
        back = at.unsqueeze(1) - at
        outside = (back < 0) | (back >= self.config.window)
        bias = self.distance[:, back.clamp(0, self.config.window - 1)]
        return bias.masked_fill(outside, -torch.inf)
