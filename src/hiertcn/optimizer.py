"""Adam for everything; on rows only, for an item table of which a step touches a small share."""

from __future__ import annotations

__all__ = ["Optimizer"]

import torch
from torch import Tensor, nn

_STATE = "optimizer"


class Optimizer:
    """AdamW on the dense gradients, lazy Adam (moments move only with their row) on the sparse ones; clipped as one."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float, clip: float) -> None:
        tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
        sparse = {id(table) for table in tables}
        self._parameters = list(model.parameters())
        dense = [p for p in self._parameters if id(p) not in sparse]
        self._learning_rate, self._clip = learning_rate, clip
        self._parts: list[torch.optim.Optimizer] = []
        if dense:
            self._parts.append(torch.optim.AdamW(dense, lr=learning_rate, weight_decay=weight_decay, fused=True))
        if tables:
            self._parts.append(torch.optim.SparseAdam(tables, lr=learning_rate))

    def step(self, share: float = 1.0) -> Tensor:
        """Clip the gradients to the norm given, step by `share` of the learning rate, clear them; the norm before
        clipping (a scalar)."""
        grads = []
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                grads.append(parameter.grad._values())
            elif parameter.grad is not None:
                grads.append(parameter.grad)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (self._clip / (norm + 1e-6)).clamp_max(1.0))
        for part in self._parts:
            part.param_groups[0]["lr"] = self._learning_rate * share
            part.step()
            part.zero_grad()
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as named tensors, for a checkpoint."""
        return {
            f"{_STATE}.{number}.{index}.{key}": torch.as_tensor(value)
            for number, part in enumerate(self._parts)
            for index, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state from what `state_tensors` gave; other tensors are passed over.

        Raises ValueError, KeyError or IndexError if it is not that of these parameters.
        """
        for number, part in enumerate(self._parts):
            parameters = part.param_groups[0]["params"]
            state: dict[int, dict[str, Tensor | int]] = {}
            for name, value in tensors.items():
                prefix, _, rest = name.partition(".")
                if prefix == _STATE and rest.startswith(f"{number}."):
                    _, index, key = rest.split(".")
                    if value.shape != (torch.Size() if key == "step" else parameters[int(index)].shape):
                        raise ValueError(f"{name} has shape {tuple(value.shape)}")
                    # SparseAdam counts its steps in a plain int.
                    plain = key == "step" and isinstance(part, torch.optim.SparseAdam)
                    state.setdefault(int(index), {})[key] = int(value) if plain else value
            part.load_state_dict({**part.state_dict(), "state": state})
