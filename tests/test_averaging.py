"""The moving average of weights: as by a slow loop, what is validated and kept, and back again after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hiertcn import training
from hiertcn.averaging import Averaged
from hiertcn.models import Model
from runs import SAMPLED, run_of, small_cache, weights_of


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.rows = nn.Linear(2, 2), nn.Embedding(3, 2, sparse=True)


def test_it_is_that_of_a_slow_loop() -> None:
    model = Table()
    averaged = Averaged(model, 0.8)
    expected = model.dense.weight.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            model.dense.weight.normal_()
            model.rows.weight.normal_()
        averaged.update(step)
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * model.dense.weight.detach()
    last, rows = model.dense.weight.detach().clone(), model.rows.weight.detach().clone()
    with averaged.in_place():
        torch.testing.assert_close(model.dense.weight.detach(), expected)
        assert torch.equal(model.rows.weight, rows)
    assert torch.equal(model.dense.weight, last)
    other = Averaged(model, 0.8)
    other.load_state_tensors(averaged.state_tensors())
    with other.in_place():
        torch.testing.assert_close(model.dense.weight.detach(), expected)
    assert not Averaged(model, 0.0).state_tensors()


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_is_validated_and_kept(decay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, evaluate_model = [], training.evaluate_model

    def watched(model: Model, *args: object, **options: object) -> object:
        seen.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return evaluate_model(model, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "evaluate_model", watched)
    run = run_of(small_cache(tmp_path / "cache"), tmp_path / "run", epochs=1, averaging=decay, **SAMPLED)
    last = weights_of(run.path, "checkpoint")
    same = [np.array_equal(weight, last[f"model.{name}"]) for name, weight in run.model.state_dict().items()]
    assert all(torch.equal(weight, seen[0][name]) for name, weight in run.model.state_dict().items())
    assert all(same) if decay == 0 else not any(same)


def test_the_rate_falls_in_a_line_to_a_twentieth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, step = [], training.Optimizer.step

    def watched(self: training.Optimizer, share: float) -> torch.Tensor:
        shares.append(share)
        return step(self, share)

    monkeypatch.setattr(training.Optimizer, "step", watched)
    run_of(small_cache(tmp_path / "cache"), tmp_path / "run", epochs=3, patience=3, decay_epochs=2)
    assert shares[0] == pytest.approx(1, abs=0.06)
    assert shares[len(shares) // 3] == pytest.approx(0.5, abs=0.06)
    assert (np.diff(shares) <= 0).all()
    assert shares[-1] == shares[-len(shares) // 4] == 0.05 == min(shares)
