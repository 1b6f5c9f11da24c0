"""What training will need of memory, told before it starts."""

from __future__ import annotations

__all__ = ["check_memory"]

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import psutil

from hiertcn.artifact import outline
from hiertcn.errors import InputError
from hiertcn.models import ModelConfig

_FLOAT = 4
# Weights, their gradient and Adam's two moments.
_COPIES = 4
# Logits, their log-softmax and its gradient.
_LOGITS = 3


def check_memory(
    model: ModelConfig, train_events: npt.NDArray[np.int64], scores: int, allow: bool, say: Callable[[str], None]
) -> None:
    """Say what training needs at most, with `scores` logits a batch; nothing of it is taken yet.

    train_events: [items + 1], as in `build`. Raises InputError if it is above what is free and `allow` is off.
    """
    weights = sum(p.numel() for p in outline(model, train_events).parameters())
    needed = _FLOAT * (weights * _COPIES + scores * _LOGITS)
    free = psutil.virtual_memory().available
    say(
        f"{weights:,} parameters; weights, optimizer and scores need about {needed / 1e9:.2f} GB, "
        f"{free / 1e9:.1f} GB are free"
    )
    if needed > free and not allow:
        raise InputError(
            f"Training needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
            "Use --loss sampled_softmax, fewer --rows or a smaller --dim; or go on with --yes."
        )
