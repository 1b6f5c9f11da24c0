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
# Scores, their exponentials and their gradient.
_SCORES = 3
# What a layer gives at a position, what its gradient needs of it, and that gradient.
_ACTIVATIONS = 3
# Five columns of 64 bits of a target, and its share of its session's.
_READ = 48


def check_memory(
    model: Model,
    *,
    positions: int,
    scores: int,
    read: int,
    crowd: int,
    averaged: bool,
    allow: bool,
    say: Callable[[str], None],
) -> None:
    """Say what training needs at most; nothing of it is taken yet.

    model:             its sizes are all that is read
    positions, scores: of a batch
    read:              events that the generator holds at a time
    crowd:             bytes
    averaged:          an average of the weights is held, too

    Raises InputError if it is above what is free and `allow` is off.
    """
    parameters = list(model.parameters())
    weights = sum(p.numel() for p in parameters)
    # Tables are looked up, all others multiply something at every position. A table and a softmax head have a row for
    # each item; what the head gives are the scores.
    width = sum(p.numel() // p.shape[-1] for p in parameters if p.ndim > 1 and len(p) != model.items_in_catalog + 1)
    batch = scores * _SCORES + positions * width * _ACTIVATIONS
    needed = _FLOAT * (weights * (_COPIES + averaged) + batch) + read * _READ + crowd
    free = psutil.virtual_memory().available
    say(
        f"{weights:,} parameters; weights, optimizer, a batch and what is read need about {needed / 1e9:.2f} GB, "
        f"{free / 1e9:.1f} GB are free"
    )
    if needed > free and not allow:
        raise InputError(
            f"Training needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
            "Use --loss sampled_softmax, fewer --rows or a smaller --dim; or go on with --yes."
        )
