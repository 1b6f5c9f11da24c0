"""Models that remember the train sessions: one reading of the log, and their model directory stands."""

from __future__ import annotations

__all__ = ["memorised"]

from pathlib import Path
from typing import Any

import torch

from hiertcn.artifact import Run, facts_of, write_run
from hiertcn.cache import Cache
from hiertcn.checkpoint import begin, locked
from hiertcn.evaluation import evaluate_model
from hiertcn.models import MemoryModel, ModelConfig, build
from hiertcn.streams import train_sessions


def memorised(cache: Cache, config: ModelConfig, train: dict[str, Any], out: Path, resume: bool = False) -> Run:
    """A model that has taken in the sessions of the train part, in the directory `out`; `train` is what it is told of
    the settings.

    Raises InputError for a directory that holds a run already.
    """
    with locked(out):
        begin(out, {}, resume)
        model = build(config, cache.catalog.train_events, 0)
        assert isinstance(model, MemoryModel)
        model.memorise(*map(torch.from_numpy, train_sessions(cache)))
        found = {}
        if cache.manifest.parts["valid"]["events"]:
            found = evaluate_model(model, cache.catalog, cache, "valid").table.event
        write_run(out, model, config, cache.catalog, facts_of(cache, train, [{"epoch": 1, **found}]))
    return Run(out)
