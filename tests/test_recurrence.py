"""The recurrent scan against torch's own GRU, forwards and backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hiertcn.models.recurrence import StackedGRU
from hiertcn.packing import Packing

LENGTHS = np.array([2, 0, 5, 1, 5, 0, 3])
TOTAL = int(LENGTHS.sum())


def drawn(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)


def torch_gru(ours: StackedGRU, inputs: int, units: int) -> nn.GRU:
    theirs = nn.GRU(inputs, units, len(ours.layers), dtype=torch.float64)
    theirs.load_state_dict({f"{name}_l{k}": p for k, c in enumerate(ours.layers) for name, p in c.named_parameters()})
    return theirs


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_the_gru_of_torch(layers: int) -> None:
    packing = Packing(LENGTHS)
    torch.manual_seed(layers)
    ours = StackedGRU(3, 4, layers).double()
    theirs = torch_gru(ours, 3, 4)
    values, initial = drawn(TOTAL, 3, seed=1), drawn(len(LENGTHS), 4 * layers, seed=2)
    states = ours(values, packing, initial)
    start = initial[packing.active].reshape(-1, layers, 4).transpose(0, 1).contiguous()
    top, last = theirs(PackedSequence(values, packing.sizes), start)
    torch.testing.assert_close(states[:, -4:], top.data)
    ends = packing.place[torch.from_numpy(np.cumsum(LENGTHS) - 1)][packing.active]
    torch.testing.assert_close(states[ends], last.transpose(0, 1).flatten(1))
    probe, probe_last = drawn(TOTAL, 4, seed=3).detach(), drawn(*last.shape, seed=4).detach()
    loss = (states[:, -4:] * probe).sum() + (states[ends] * probe_last.transpose(0, 1).flatten(1)).sum()
    wanted = torch.autograd.grad(
        (top.data * probe).sum() + (last * probe_last).sum(), [values, initial, *theirs.parameters()]
    )
    torch.testing.assert_close(torch.autograd.grad(loss, [values, initial, *ours.parameters()]), wanted)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("decayed", [False, True])
def test_its_gradients_are_those_of_differences(layers: int, decayed: bool) -> None:
    packing = Packing(LENGTHS)
    torch.manual_seed(layers)
    gru = StackedGRU(2, 3, layers).double()
    inputs = [drawn(TOTAL, 2, seed=5), drawn(len(LENGTHS), 3 * layers, seed=6)]
    if decayed:
        inputs.append(
            torch.rand(TOTAL, generator=torch.Generator().manual_seed(7), dtype=torch.float64).requires_grad_()
        )

    def states(values: Tensor, initial: Tensor, *rest: Tensor) -> Tensor:
        return gru(values, packing, initial, *rest[: int(decayed)])

    assert torch.autograd.gradcheck(states, inputs)
    assert torch.autograd.gradcheck(lambda *weights: states(*inputs, *weights), [*inputs, *gru.parameters()][2:])


def test_the_decay_comes_before_each_element() -> None:
    """Once for all layers, as if the state were kept and multiplied between one-element sequences."""
    packing, one = Packing(np.array([3])), Packing(np.array([1]))
    torch.manual_seed(0)
    gru = StackedGRU(2, 3, 2).double()
    values, state = drawn(3, 2, seed=8), drawn(1, 6, seed=9)
    decay = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    states = gru(values, packing, state, decay)
    for step in range(3):
        state = gru(values[step : step + 1], one, state * decay[step])
        torch.testing.assert_close(states[step : step + 1], state)


def test_nothing_to_read_gives_no_state() -> None:
    assert StackedGRU(2, 3, 2)(torch.empty(0, 2), Packing(np.zeros(4, dtype=np.int64)), torch.zeros(4, 6)).shape == (
        0,
        6,
    )


def test_under_autocast_states_stay_whole() -> None:
    packing, gru = Packing(LENGTHS), StackedGRU(2, 3, 1)
    values, initial = torch.randn(TOTAL, 2).bfloat16(), torch.zeros(len(LENGTHS), 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        states = gru(values, packing, initial)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, gru(values.float(), packing, initial.float()))
