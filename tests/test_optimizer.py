"""The optimizer is AdamW where gradients are dense and lazy Adam where they are sparse, clipped as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import caches
from hiertcn import training
from hiertcn.models import MovingAverageConfig, build
from hiertcn.optimizer import Optimizer
from runs import SAMPLED, run_of, weights_of


class TwoTables(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=sparse)
        self.map = nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.map(self.table(rows)).square().sum()
        return out


def two_tables(sparse: bool) -> TwoTables:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TwoTables(sparse)


def some_rows() -> list[Tensor]:
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(0, 20, 6)) for _ in range(12)]


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_dense_steps_are_adamw_with_clipped_gradients(clip: float) -> None:
    ours, theirs = two_tables(False), two_tables(False)
    optimizer = Optimizer(ours, 0.03, 0.1, clip)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.03, weight_decay=0.1)
    for rows in some_rows():
        ours(rows).backward()
        theirs(rows).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        assert float(optimizer.step()) == pytest.approx(float(expected), rel=1e-6)
        reference.step()
        reference.zero_grad()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is None
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_sparse_steps_are_lazy_adam_clipped_with_the_rest(clip: float) -> None:
    ours = two_tables(True)
    optimizer = Optimizer(ours, 0.03, 0.0, clip)
    table = ours.table.weight.detach().double().numpy().copy()
    mean, square = np.zeros_like(table), np.zeros_like(table)
    for step, rows in enumerate(some_rows(), 1):
        dense = two_tables(False)
        dense.load_state_dict(ours.state_dict())
        dense(rows).backward()
        norm = nn.utils.clip_grad_norm_(dense.parameters(), clip)
        assert dense.table.weight.grad is not None
        gradient = dense.table.weight.grad.double().numpy()
        ours(rows).backward()
        assert float(optimizer.step()) == pytest.approx(float(norm), rel=1e-6)
        touched = np.unique(rows.numpy())
        mean[touched] += 0.1 * (gradient[touched] - mean[touched])
        square[touched] += 0.001 * (gradient[touched] ** 2 - square[touched])
        rate = 0.03 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        table[touched] -= rate * mean[touched] / (np.sqrt(square[touched]) + 1e-8)
        np.testing.assert_allclose(ours.table.weight.detach().numpy(), table, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_optimizer_goes_on_from_its_tensors(sparse: bool) -> None:
    rows = some_rows()
    model = two_tables(sparse)
    optimizer = Optimizer(model, 0.03, 0.1, 1.0)
    for batch in rows[:5]:
        model(batch).backward()
        optimizer.step()
    copy = two_tables(sparse)
    copy.load_state_dict(model.state_dict())
    other = Optimizer(copy, 0.03, 0.1, 1.0)
    other.load_state_tensors({**{n: t.clone() for n, t in optimizer.state_tensors().items()}, "else": torch.zeros(1)})
    for batch in rows[5:]:
        for trained, by in ((model, optimizer), (copy, other)):
            trained(batch).backward()
            by.step()
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_state_of_another_model_is_refused(sparse: bool) -> None:
    model = two_tables(sparse)
    optimizer = Optimizer(model, 0.03, 0.1, 1.0)
    model(some_rows()[0]).backward()
    optimizer.step()
    state = optimizer.state_tensors()
    moments = next(name for name in state if name.endswith("exp_avg"))
    with pytest.raises(ValueError, match=moments):
        optimizer.load_state_tensors({**state, moments: torch.zeros(1, 1)})


def test_of_a_large_table_only_the_rows_of_a_step_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [(f"u{number}", [1, 2, 3, 2, 1, 3], range(6), ["train"] * 5 + ["valid"]) for number in range(8)]
    wide = caches.cache_of(tmp_path / "cache", users, 1800, catalog_size=9)
    model, settings = MovingAverageConfig(dim=4), {**SAMPLED, "uniform_negatives": 0}
    before = build(model, wide.catalog.train_events, 0).state_dict()["items.weight"].numpy()
    for sparse in (True, False):
        monkeypatch.setattr(training, "SPARSE_FROM", 0 if sparse else 10**9)
        after = weights_of(run_of(wide, tmp_path / str(sparse), model, epochs=1, weight_decay=0.1, **settings).path)
        moved = (after["items.weight"] != before).all(1)
        assert moved.tolist() == [False, *[True] * 3, *[not sparse] * 6]
