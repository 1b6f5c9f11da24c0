"""TCN: a temporal convolutional network over a user's last items, without sessions (a baseline of You et al., 2019)."""

from __future__ import annotations

__all__ = ["FlatTCN", "TCNConfig"]

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from hiertcn.config import Count, Dropout
from hiertcn.models.protocol import VectorConfig
from hiertcn.models.tcn import TCN, receptive_field
from hiertcn.models.windowed import OneSequence
from hiertcn.sequences import Continued


class TCNConfig(VectorConfig):
    """Four layers of 128 channels, then two of 256, with kernel 5 are the paper's baseline; it sees 253 items."""

    name: ClassVar[str] = "tcn"

    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16, strict=False)] = (128,) * 4 + (256,) * 2
    kernel: Annotated[int, Field(ge=1, le=64)] = 5
    dropout: Dropout = 0.0


class FlatTCN(OneSequence):
    """u = W TCN(E x) + b; the state is the rows of the last items, as many as the receptive field."""

    def __init__(self, items: int, config: TCNConfig, given: Tensor | None = None) -> None:
        super().__init__(items, receptive_field(config.kernel, len(config.channels)), config, given)
        self.config = config
        self.width = config.channels[-1]
        self.tcn = TCN(config.dim, config.channels, config.kernel, config.dropout)
        self.head = nn.Linear(self.width, self.items.query_size)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, sequences: Continued) -> Tensor:
        out: Tensor = self.tcn(self.dropout(self.items(sequences.rows)), sequences)
        return out
