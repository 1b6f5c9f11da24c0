"""What training will need of memory, told before it starts."""

from __future__ import annotations

__all__ = ["check_memory"]

from collections.abc import Callable

import psutil

from hiertcn.errors import InputError
from hiertcn.models import Model

_FLOAT = 4
# Weights, their gradient and Adam's two moments.
_COPIES = 4
# Logits, their log-softmax and its gradient.
_LOGITS = 3


def check_memory(model: Model, batch_events: int, loss: str, allow: bool, say: Callable[[str], None]) -> None:
    """Say the estimate. Raises InputError if it is above what is free and `allow` is off."""
    weights = sum(p.numel() for p in model.parameters())
    scores = batch_events * model.items_in_catalog * _LOGITS if loss == "cross_entropy" else 0
    needed = _FLOAT * (weights * _COPIES + scores)
    free = psutil.virtual_memory().available
    say(f"{weights:,} parameters; training needs at most about {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB are free")
    if needed > free and not allow:
        raise InputError(
            f"Training needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Use --loss sampled_softmax, "
            "fewer --rows or a smaller --dim; or go on with --yes."
        )
