"""Losses against their formulas in plain NumPy, and negatives against what they say of themselves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hiertcn.losses import RANKING, Lookup, RankingLoss, Score, cross_entropy, l2, ranking_loss, sampled_softmax
from hiertcn.models.items import fixed_scores
from hiertcn.negatives import Negatives, NegativeSampler, OwnNegatives

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


def scored(vectors: Tensor, bias: Tensor | None) -> Score:
    def score(queries: Tensor, rows: Tensor) -> Tensor:
        scores = (vectors[rows] * queries.unsqueeze(1)).sum(2)
        return scores if bias is None else scores + bias[rows]

    return score


def among(vectors: Tensor, bias: Tensor | None, sparse: bool = False) -> Lookup:
    return lambda rows: (F.embedding(rows, vectors, sparse=sparse), None if bias is None else bias[rows])


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
    table, negatives = (vectors, bias if biased else None), some_negatives(seed)
    found = sampled_softmax(queries, targets, among(*table, sparse), negatives)
    assert found.item() == pytest.approx(sampled_by_hand(queries, targets, *table, negatives), abs=1e-6)


@biased
def test_gradients(biased: bool) -> None:
    """The full softmax takes its logits in single precision, so its differences are coarse."""
    queries, targets, vectors, bias = drawn(9)
    inputs = (queries, vectors, *([bias] if biased else []))
    negatives = some_negatives(9)

    def full(q: Tensor, v: Tensor, b: Tensor | None = None) -> Tensor:
        return cross_entropy(q, targets, v, b).double()

    def sampled(q: Tensor, v: Tensor, b: Tensor | None = None) -> Tensor:
        return sampled_softmax(q, targets, among(v, b), negatives).double()

    assert torch.autograd.gradcheck(full, inputs, eps=1e-2, atol=1e-3, rtol=1e-3)
    assert torch.autograd.gradcheck(sampled, inputs)


def test_large_scores_lose_nothing() -> None:
    """Beyond what exp can hold in single precision, where the target is above all others and where it is below."""
    vectors = torch.tensor([[0.0], [300], [0], [-300]])
    queries, targets = torch.ones(2, 1, requires_grad=True), torch.tensor([1, 3])
    negatives = Negatives(torch.tensor([1, 2, 3]), torch.ones(4))
    loss = sampled_softmax(queries, targets, among(vectors, None), negatives)
    assert loss.item() == pytest.approx(300) == cross_entropy(queries, targets, vectors, None).item()
    loss.backward()
    assert queries.grad is not None
    assert queries.grad.tolist() == [[0], [300]]


def test_sparse_gradients_are_the_dense_ones_of_the_rows_read() -> None:
    queries, targets, vectors, _ = drawn(4)
    negatives = some_negatives(4, count=2)
    dense, sparse = (
        torch.autograd.grad(sampled_softmax(queries, targets, among(vectors, None, s), negatives), vectors)[0]
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
    losses = [sampled_softmax(queries, targets, among(vectors, bias), n).item() for n in (with_target, without)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)
    alone = sampled_softmax(queries, targets, among(vectors, bias), Negatives(torch.tensor([4, 4]), expected))
    alone.backward()
    assert alone.item() == 0
    assert queries.grad is not None
    assert queries.grad.abs().max() < 1e-15


@biased
def test_every_item_once_is_the_full_softmax(biased: bool) -> None:
    queries, targets, vectors, bias = drawn(5)
    args = (queries, targets, vectors, bias if biased else None)
    every = Negatives(torch.arange(1, ITEMS + 1), torch.ones(ITEMS + 1))
    assert sampled_softmax(*args[:2], among(*args[2:]), every).item() == pytest.approx(
        cross_entropy(*args).item(), abs=1e-6
    )


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
    assert sampled_softmax(queries, targets, among(vectors, bias), negatives).item() == pytest.approx(wanted, abs=0.05)


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


# Each target against negatives of its own.


def sigmoid(x: np.ndarray | float) -> np.ndarray | float:
    return 1 / (1 + np.exp(-np.asarray(x)))


def ranking_by_hand(
    name: str,
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    vectors: Tensor,
    bias: Tensor | None,
    delta: float,
    weight: float,
) -> float:
    q, v, b = arrays(queries, vectors, bias)
    total = 0.0
    for query, target, own in zip(q, targets.tolist(), negatives.tolist(), strict=True):
        p = query / np.sqrt((query**2).sum())
        y = p @ v[target] + b[target]
        others = [p @ v[row] + b[row] for row in own if row not in (0, target)]
        if name == "nce":
            total -= np.log(sigmoid(y))
        if not others:
            continue
        terms = {
            "nce": lambda n, y=y: -weight * np.log(sigmoid(-n)),
            "bpr": lambda n, y=y: -np.log(sigmoid(y - n)),
            "bpr_sigmoid": lambda n, y=y: -np.log(sigmoid(sigmoid(y) - sigmoid(n))),
            "hinge": lambda n, y=y: max(0, n - y + delta),
            "hinge_sigmoid": lambda n, y=y: max(0, sigmoid(n) - sigmoid(y) + delta),
            "hinge_logsigmoid": lambda n, y=y: max(0, np.log(sigmoid(n)) - np.log(sigmoid(y)) + delta),
        }
        total += sum(terms[name](n) for n in others) / len(others)
    return total / len(q)


def own_rows(seed: int, width: int = 4) -> Tensor:
    """[TARGETS, width] rows, some 0, some the target's; the last target has none."""
    rows = torch.randint(0, ITEMS + 1, (TARGETS, width), generator=torch.Generator().manual_seed(seed))
    rows[0, 0] = drawn(seed)[1][0]
    rows[-1] = 0
    return rows


@biased
@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("seed", range(3))
def test_ranking_losses_are_their_formulas(name: RankingLoss, seed: int, biased: bool) -> None:
    queries, targets, vectors, bias = drawn(seed)
    table, negatives = (vectors, bias if biased else None), own_rows(seed)
    found = ranking_loss(name, queries, targets, negatives, scored(*table), 0.3, 2.0)
    expected = ranking_by_hand(name, queries, targets, negatives, *table, 0.3, 2.0)
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", RANKING)
def test_gradients_of_ranking_losses(name: RankingLoss) -> None:
    queries, targets, vectors, bias = drawn(8)
    negatives = own_rows(8)

    def loss(q: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return ranking_loss(name, q, targets, negatives, scored(v, b), 0.3, 2.0)

    assert torch.autograd.gradcheck(loss, (queries, vectors, bias))


@pytest.mark.parametrize("count", [0, 1, 64, 150])
def test_fixed_vectors_are_compared_block_by_block_as_at_once(count: int) -> None:
    random = np.random.default_rng(count)
    queries = torch.from_numpy(random.normal(size=(count, 5))).requires_grad_()
    vectors, rows = torch.from_numpy(random.normal(size=(9, 5))), torch.from_numpy(random.integers(0, 9, (count, 3)))
    expected = scored(vectors, None)(queries, rows)
    torch.testing.assert_close(fixed_scores(queries, vectors, rows), expected)
    if 0 < count < 100:
        assert torch.autograd.gradcheck(lambda q: fixed_scores(q, vectors, rows), (queries,))
    weights = torch.from_numpy(random.normal(size=(count, 3)))
    ours, theirs = (
        torch.autograd.grad((scores * weights).sum(), queries)[0]
        for scores in (fixed_scores(queries, vectors, rows), expected)
    )
    torch.testing.assert_close(ours, theirs)


def test_l2_is_the_squared_distance() -> None:
    queries, targets, vectors, _ = drawn(1)
    distances = [((q - vectors[t]) ** 2).sum().item() for q, t in zip(queries, targets, strict=True)]
    assert l2(queries, targets, among(vectors, None)).item() == pytest.approx(np.mean(distances))
    assert torch.autograd.gradcheck(lambda q, v: l2(q, targets, among(v, None)), (queries, vectors))


@pytest.mark.parametrize("drawn_from", ["uniform", "popular", "in_batch"])
def test_own_negatives_are_what_was_shown_or_else_drawn(drawn_from: str) -> None:
    sampler = OwnNegatives(TRAIN_EVENTS, 3, drawn_from, 1.0)  # type: ignore[arg-type]
    targets = torch.tensor([1, 4] * 200)
    shown = torch.zeros(400, 5, dtype=torch.int64)
    shown[::2, :2] = torch.tensor([7, 3])
    rows = sampler.draw(targets, shown, np.random.default_rng(0))
    assert rows.shape == (400, 3)
    few = OwnNegatives(TRAIN_EVENTS, 1, drawn_from, 1.0).draw(targets, shown, np.random.default_rng(0))  # type: ignore[arg-type]
    assert 60 < (few[::2] == 7).sum() < 140
    assert set(few[::2].flatten().tolist()) == {3, 7}
    assert (rows[::2].sort().values == torch.tensor([0, 3, 7])).all()
    found = np.bincount(rows[1::2].flatten(), minlength=ITEMS + 1) / 600
    expected = {
        "uniform": np.append(0, np.full(ITEMS, 1 / ITEMS)),
        "popular": TRAIN_EVENTS / TRAIN_EVENTS.sum(),
        "in_batch": np.array([0, 0.5, 0, 0, 0.5, 0, 0, 0]),
    }[drawn_from]
    np.testing.assert_allclose(found, expected, atol=0.08)
    assert torch.equal(sampler.draw(targets, shown[:, :0], np.random.default_rng(0))[1::2], rows[1::2])
