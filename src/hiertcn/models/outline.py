"""A model's names and shapes without its memory: what weights have to fit, and what they will need."""

from __future__ import annotations

__all__ = ["check_weights", "outline"]

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from hiertcn.errors import ArtifactError, InputError
from hiertcn.models import Model, ModelConfig, build
from hiertcn.vectors import Vectors


class _Unfilled(TorchFunctionMode):
    """Leaves new weights without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (init.normal_, init.uniform_, init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def outline(config: ModelConfig, train_events: npt.NDArray[np.int64], vectors: Vectors | None = None) -> Model:
    """The model that `build` gives, with names and shapes, but without memory or values; `vectors` are not read.

    Raises InputError for sizes that no memory can have.
    """
    try:
        with torch.device("meta"), _Unfilled():
            return build(config, train_events, 0, vectors)
    except RuntimeError as error:
        raise InputError(f"The model is too large for any machine ({error}). Make its sizes smaller.") from error


def check_weights(model: Model, tensors: dict[str, Tensor], where: Path) -> None:
    """Raises ArtifactError unless `tensors` have the names, shapes and types of the model's, and finite values."""
    expected = model.state_dict()
    odd = sorted(set(expected) ^ set(tensors)) or [
        name
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype
    ]
    if odd:
        raise ArtifactError(f"{where}: the weights {odd[:5]} are not those of the model its manifest states.")
    if wild := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise ArtifactError(f"{where}: the weights {wild[:5]} hold NaN or infinite values. Train the model again.")
