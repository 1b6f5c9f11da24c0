"""Losses against their formulas in plain NumPy, and negatives against what they say of themselves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiertcn.losses import cross_entropy, sampled_softmax
from hiertcn.negatives import Negatives, NegativeSampler

ITEMS, WIDTH, TARGETS = 7, 3, 5
TRAIN_EVENTS = np.array([0, 40, 1, 0, 9, 25, 4, 0])  # rows 3 and 7 are named beside the log


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """queries, targets, vectors, bias"""
    rng = torch.Generator().manual_seed(seed)
    queries, vectors, bias = (
        torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for shape in [(TARGETS, WIDTH), (ITEMS + 1, WIDTH), (ITEMS + 1,)]
    )
    return queries, torch.randint(1, ITEMS + 1, (TARGETS,), generator=rng), vectors, bias


def arrays(*tensors: Tensor | None) -> list[np.ndarray]:
    return [np.zeros(ITEMS + 1) if tensor is None else tensor.detach().numpy() for tensor in tensors]


def softmax_by_hand(queries: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor | None) -> float:
    q, v, b = arrays(queries, vectors, bias)
    total = 0.0
    for query, target in zip(q, targets.tolist(), strict=True):
        masses = [np.exp(query @ v[row] + b[row]) for row in range(1, ITEMS + 1)]
        total -= np.log(masses[target - 1] / sum(masses))
    return total / len(q)


def sampled_by_hand(
    queries: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor | None, negatives: Negatives
) -> float:
    q, v, b, expected = arrays(queries, vectors, bias, negatives.expected)
    total = 0.0
    for query, target in zip(q, targets.tolist(), strict=True):
        mass = {row: np.exp(query @ v[row] + b[row]) / expected[row] for row in range(1, ITEMS + 1) if expected[row]}
        others = sum(mass[row] for row in negatives.rows.tolist() if row != target)
        total -= np.log(mass[target] / (mass[target] + others))
    return total / len(q)


def some_negatives(seed: int, count: int = 9) -> Negatives:
    rng = torch.Generator().manual_seed(seed)
    return Negatives(torch.randint(1, ITEMS + 1, (count,), generator=rng), torch.rand(ITEMS + 1, generator=rng) + 0.1)


biased = pytest.mark.parametrize("biased", [False, True])


@biased
@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_its_formula(biased: bool, seed: int) -> None:
    queries, targets, vectors, bias = drawn(seed)
    args = (queries, targets, vectors, bias if biased else None)
    assert cross_entropy(*args).item() == pytest.approx(softmax_by_hand(*args), abs=1e-6)


@biased
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_softmax_is_its_formula(biased: bool, sparse: bool, seed: int) -> None:
    queries, targets, vectors, bias = drawn(seed)
    args = (queries, targets, vectors, bias if biased else None, some_negatives(seed))
    assert sampled_softmax(*args, sparse=sparse).item() == pytest.approx(sampled_by_hand(*args), abs=1e-6)


@biased
def test_gradients(biased: bool) -> None:
    """The full softmax takes its logits in single precision, so its differences are coarse."""
    queries, targets, vectors, bias = drawn(9)
    inputs = (queries, vectors, *([bias] if biased else []))
    negatives = some_negatives(9)

    def full(q: Tensor, v: Tensor, b: Tensor | None = None) -> Tensor:
        return cross_entropy(q, targets, v, b).double()

    def sampled(q: Tensor, v: Tensor, b: Tensor | None = None) -> Tensor:
        return sampled_softmax(q, targets, v, b, negatives).double()

    assert torch.autograd.gradcheck(full, inputs, eps=1e-2, atol=1e-3, rtol=1e-3)
    assert torch.autograd.gradcheck(sampled, inputs)


def test_large_scores_lose_nothing() -> None:
    """Beyond what exp can hold in single precision, where the target is above all others and where it is below."""
    vectors = torch.tensor([[0.0], [300], [0], [-300]])
    queries, targets = torch.ones(2, 1, requires_grad=True), torch.tensor([1, 3])
    negatives = Negatives(torch.tensor([1, 2, 3]), torch.ones(4))
    loss = sampled_softmax(queries, targets, vectors, None, negatives)
    assert loss.item() == pytest.approx(300) == cross_entropy(queries, targets, vectors, None).item()
    loss.backward()
    assert queries.grad is not None
    assert queries.grad.tolist() == [[0], [300]]


def test_sparse_gradients_are_the_dense_ones_of_the_rows_read() -> None:
    queries, targets, vectors, _ = drawn(4)
    negatives = some_negatives(4, count=2)
    dense, sparse = (
        torch.autograd.grad(sampled_softmax(queries, targets, vectors, None, negatives, sparse=s), vectors)[0]
        for s in (False, True)
    )
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)
    assert set(sparse.coalesce().indices()[0].tolist()) == {*targets.tolist(), *negatives.rows.tolist()}


def test_a_negative_that_is_the_target_does_not_count() -> None:
    queries, targets, vectors, bias = drawn(2)
    targets = torch.full_like(targets, 4)
    expected = torch.full((ITEMS + 1,), 0.7)
    with_target = Negatives(torch.tensor([1, 4, 2, 4]), expected)
    without = Negatives(torch.tensor([1, 2]), expected)
    losses = [sampled_softmax(queries, targets, vectors, bias, n).item() for n in (with_target, without)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)
    alone = sampled_softmax(queries, targets, vectors, bias, Negatives(torch.tensor([4, 4]), expected))
    alone.backward()
    assert alone.item() == 0
    assert queries.grad is not None
    assert queries.grad.abs().max() < 1e-15


@biased
def test_every_item_once_is_the_full_softmax(biased: bool) -> None:
    queries, targets, vectors, bias = drawn(5)
    args = (queries, targets, vectors, bias if biased else None)
    every = Negatives(torch.arange(1, ITEMS + 1), torch.ones(ITEMS + 1))
    assert sampled_softmax(*args, every).item() == pytest.approx(cross_entropy(*args).item(), abs=1e-6)


@pytest.mark.parametrize(("uniform", "popular", "in_batch"), [(9000, 0, False), (9000, 9000, False), (500, 500, True)])
def test_many_negatives_weigh_the_same_whatever_they_are_drawn_from(uniform: int, popular: int, in_batch: bool) -> None:
    """An item's draws come to its mass in the full softmax; the target's own is less by how often it is expected."""
    queries, targets, vectors, bias = drawn(6)
    counts = TRAIN_EVENTS + 1
    counts[0] = 0
    rng = np.random.default_rng(0)
    copies = 3000 if in_batch else 1
    asked = torch.from_numpy(rng.choice(ITEMS + 1, copies, p=counts / counts.sum()))
    negatives = NegativeSampler(counts, uniform, popular, 0.5, in_batch).draw(asked, rng)
    q, v, b, expected = arrays(queries, vectors, bias, negatives.expected)
    masses = np.exp(q @ v.T + b)[:, 1:]
    own = masses[np.arange(TARGETS), targets - 1]
    wanted = np.log1p((masses.sum(1) - own) * expected[targets] / own).mean()
    assert sampled_softmax(queries, targets, vectors, bias, negatives).item() == pytest.approx(wanted, abs=0.05)


@settings(max_examples=30, deadline=None)
@given(
    uniform=st.integers(0, 3),
    popular=st.integers(0, 3),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    in_batch=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_are_drawn_as_often_as_expected(
    uniform: int, popular: int, alpha: float, in_batch: bool, seed: int
) -> None:
    """Over many batches whose targets come from the train part; each count within five of its standard deviations."""
    rng = np.random.default_rng(seed)
    sampler = NegativeSampler(TRAIN_EVENTS, uniform, popular, alpha, in_batch)
    batches, count = 400, np.zeros(ITEMS + 1)
    for _ in range(batches):
        targets = torch.from_numpy(rng.choice(ITEMS + 1, TARGETS, p=TRAIN_EVENTS / TRAIN_EVENTS.sum()))
        negatives = sampler.draw(targets, rng)
        assert len(negatives.rows) == uniform + popular + TARGETS * in_batch
        count += np.bincount(negatives.rows, minlength=ITEMS + 1)
    expected = negatives.expected.numpy().astype(np.float64)
    assert expected.sum() == pytest.approx(uniform + popular + TARGETS * in_batch, abs=1e-5)
    assert count[0] == expected[0] == 0
    assert (np.abs(count - batches * expected) <= 5 * np.sqrt(batches * expected) + 1e-9).all()


def test_popularity_is_a_power_of_train_events() -> None:
    for alpha, popular in product([0.0, 0.75, 1.0], [1, 8]):
        expected = NegativeSampler(TRAIN_EVENTS, 0, popular, alpha, False).draw(
            torch.tensor([1]), np.random.default_rng(0)
        )
        weights = np.where(TRAIN_EVENTS > 0, np.maximum(TRAIN_EVENTS, 1.0) ** alpha, 0)
        np.testing.assert_allclose(expected.expected, popular * weights / weights.sum(), rtol=1e-6)


def test_draws_are_a_function_of_the_generator() -> None:
    sampler = NegativeSampler(TRAIN_EVENTS, 50, 50, 0.75, True)
    targets = torch.tensor([1, 2])
    one, same, other = (sampler.draw(targets, np.random.default_rng(seed)).rows.tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert one[-2:] == [1, 2]
