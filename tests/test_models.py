"""What every model promises, whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from caches import User, batches_of, cache_of
from hiertcn.batching import SessionBatches
from hiertcn.losses import cross_entropy
from hiertcn.models import CONFIGS, Model, ModelConfig, VectorModel, build, remembers, trainable
from hiertcn.models.boosts import spread
from hiertcn.models.flat_tcn import TCNConfig
from hiertcn.models.gru import GRUConfig
from hiertcn.models.hiertcn import HierTCNConfig
from hiertcn.models.hrnn import HRNNConfig
from hiertcn.models.items import GivenItems
from hiertcn.models.max_item import MaxItemConfig
from hiertcn.models.moving_average import MovingAverageConfig
from hiertcn.models.popularity import LastItemsConfig, MostFrequentConfig, PopularityConfig
from hiertcn.models.rules import ItemKNNConfig, SequentialRulesConfig
from hiertcn.models.sasrec import SASRecConfig
from hiertcn.models.sknn import SKNNConfig
from hiertcn.models.trending import TrendingConfig
from hiertcn.models.var import VARConfig
from people import filled
from scoring import Person, in_batches, one_by_one, passed

Log = Callable[..., SessionBatches]
GAP = 1800
TRAIN_EVENTS = np.array([0, 5, 3, 9, 1, 7, 2])
CATALOG = len(TRAIN_EVENTS) - 1
VECTORS = np.random.default_rng(2).normal(size=(CATALOG + 1, 5)).astype(np.float32)
VECTORS[0] = 0
WAITS = [0, 1, 60, 600, GAP - 1, GAP, GAP + 1, 86_400, 500_000]
EVERYTHING = {"channels": (7, 9, 7, 8), "kernel": 3, "gap_decay": "learned", "norm": True, "clock": True}


def hiertcn(**changes: object) -> HierTCNConfig:
    return HierTCNConfig(**{"dim": 6, "units": 5, "channels": (7, 7), "kernel": 3, **changes})


MODELS: dict[str, ModelConfig] = {
    "hiertcn": hiertcn(),
    "hiertcn-max": hiertcn(aggregate="max"),
    "hiertcn-softmax": hiertcn(head="softmax"),
    "hiertcn-fixed-decay": hiertcn(gap_decay="fixed"),
    "hiertcn-learned-decay": hiertcn(gap_decay="learned"),
    "hiertcn-norm": hiertcn(norm=True),
    "hiertcn-clock": hiertcn(clock=True),
    "hiertcn-repeats": hiertcn(repeats=3),
    "hiertcn-4-layers": hiertcn(channels=(7, 7, 7, 7)),
    "hiertcn-1-state-layer": hiertcn(state_layers=1, gap_decay="fixed"),
    "hiertcn-dropout": hiertcn(dropout=0.3),
    "hiertcn-everything": hiertcn(**EVERYTHING, aggregate="max", head="softmax", dropout=0.1),
    "hiertcn-gru": hiertcn(low="gru", gap_decay="learned"),
    "hiertcn-mean": hiertcn(low="mean", channels=(7,), norm=True, dropout=0.1, head="softmax"),
    "gru": GRUConfig(dim=6, units=5),
    "hrnn": HRNNConfig(dim=6, units=5),
    "moving_average": MovingAverageConfig(dim=6, window=4),
    "moving_average-exponential": MovingAverageConfig(dim=6, window=4, decay="exponential"),
    "moving_average-gap": MovingAverageConfig(dim=6, window=4, decay="gap"),
    "moving_average-fixed-gap": MovingAverageConfig(window=4, vectors="fixed", decay="gap"),
    "var": VARConfig(dim=6, window=4),
    "var-scalar": VARConfig(dim=6, window=4, weights="scalar", vectors="fixed"),
    "tcn": TCNConfig(dim=6, channels=(7, 5), kernel=2),
    "tcn-fixed": TCNConfig(dim=6, channels=(5, 5, 5), kernel=3, dropout=0.1, vectors="fixed"),
    "sasrec": SASRecConfig(dim=6, window=4, heads=2),
    "sasrec-short": SASRecConfig(dim=6, window=2, layers=1, dropout=0.1, vectors="both"),
    "hiertcn-fixed-l2": hiertcn(vectors="fixed", ranking="l2", unit=True),
    "hiertcn-tuned": hiertcn(vectors="tuned", clock=True),
    "gru-both-l2": GRUConfig(dim=6, units=5, vectors="both", ranking="l2"),
    "moving_average-fixed": MovingAverageConfig(window=4, vectors="fixed"),
    "max_item": MaxItemConfig(window=4),
    "popularity": PopularityConfig(),
    "trending": TrendingConfig(),
    "last_items": LastItemsConfig(window=4),
    "most_frequent": MostFrequentConfig(window=4),
    "item_knn": ItemKNNConfig(window=4),
    "sequential_rules": SequentialRulesConfig(window=4, decay=0.5),
    "sknn": SKNNConfig(window=4),
    "sknn-stan": SKNNConfig(window=4, variant="stan", idf=1.0, age_decay=1e8),
    "sknn-ebr": SKNNConfig(window=3, extend=4, remind=0.2),
}


def test_max_item_is_the_best_match_of_the_last_items(logged: Log) -> None:
    model = build(MaxItemConfig(window=2), TRAIN_EVENTS, 0, VECTORS)
    scores = in_batches(model, logged([("u", [1, 4, 2], [0, 10, 5000], "test")]))
    matches = torch.from_numpy(VECTORS) @ torch.from_numpy(VECTORS[1:]).T
    expected = torch.stack([torch.zeros(CATALOG), matches[1], torch.maximum(matches[1], matches[4])])
    torch.testing.assert_close(scores, expected)


def test_every_model_is_held_to_the_contract() -> None:
    assert {config.name for config in MODELS.values()} == set(CONFIGS)


def person(seed: int, events: int) -> User:
    """A history with items in and outside the catalog, equal times, and gaps around the limit."""
    rng = np.random.default_rng(seed)
    times = 1_700_000_000 + np.cumsum(rng.choice(WAITS, events))
    return f"u{seed}", rng.integers(0, CATALOG + 3, events).tolist(), times.tolist(), "test"


PEOPLE = [person(seed, events) for seed, events in enumerate([9, 1, 20, 3, 6, 25, 2])]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Batches of users' whole histories; the caches are kept for the tests of all models."""
    caches = {}

    def batches(users: list[User], **settings: int) -> SessionBatches:
        key = str(users)
        if key not in caches:
            caches[key] = cache_of(tmp_path_factory.mktemp("log") / "cache", users, GAP, CATALOG)
        return batches_of(caches[key], "test", **settings)

    return batches


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def first_of_sessions(times: list[float]) -> list[bool]:
    return [t == 0 or times[t] - times[t - 1] >= GAP for t in range(len(times))]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
class TestModelContract:
    @pytest.fixture
    def model(self, config: ModelConfig) -> Model:
        return filled(build(config, TRAIN_EVENTS, 3, VECTORS)).double()

    def test_batches_are_event_by_event(self, model: Model, logged: Log) -> None:
        close(in_batches(model, logged(PEOPLE)), one_by_one(model, PEOPLE, GAP))

    def test_a_cut_between_batches_changes_nothing(self, model: Model, logged: Log) -> None:
        whole = in_batches(model, logged(PEOPLE, rows=len(PEOPLE), sessions=1000, chunk=1000))
        for rows, sessions, chunk in [(5, 1, 1), (1, 4, 2), (2, 2, 1000)]:
            close(in_batches(model, logged(PEOPLE, rows=rows, sessions=sessions, chunk=chunk)), whole)

    def test_no_user_knows_of_another(self, model: Model, logged: Log) -> None:
        lengths = [len(items) for _, items, _, _ in PEOPLE]
        together = in_batches(model, logged(PEOPLE)).split(lengths)
        turned = in_batches(model, logged(PEOPLE[::-1])).split(lengths[::-1])
        for number, user in enumerate(PEOPLE):
            close(turned[-1 - number], together[number])
            close(in_batches(model, logged([user])), together[number])

    def test_an_item_changes_no_score_before_it(self, model: Model, logged: Log) -> None:
        """Nor the one that predicts it. Items become another known one, an unknown one, or known from unknown."""
        user, items, times, part = PEOPLE[2]
        changed = [
            (user, [*items[:t], other, *items[t + 1 :]], times, part)
            for t in range(len(items))
            for other in {0, items[t] % CATALOG + 1} - {items[t]}
        ]
        original, *others = in_batches(model, logged([PEOPLE[2], *changed], rows=len(changed) + 1)).split(len(items))
        later = False
        for scores, (_, those, _, _) in zip(others, changed, strict=True):
            t = next(t for t in range(len(items)) if those[t] != items[t])
            close(scores[: t + 1], original[: t + 1])
            later |= not torch.allclose(scores[t + 1 :], original[t + 1 :])
        assert later is (model.config.name not in ("popularity", "trending"))

    def test_a_time_within_its_session_changes_no_score_before_it(self, model: Model, logged: Log) -> None:
        """Nor the one that predicts it: how long the last page was read is not known when the next one is asked for."""
        user, items, times, part = PEOPLE[2]
        begins = first_of_sessions(times)
        inner = [t for t in range(len(times)) if not begins[t]]
        latest = [min([times[t - 1] + GAP - 1, *times[t + 1 : t + 2]]) for t in inner]
        moved = [(t, time) for t, last in zip(inner, latest, strict=True) for time in {times[t - 1], last} - {times[t]}]
        assert len(moved) > 10
        changed = [(user, items, [*times[:t], time, *times[t + 1 :]], part) for t, time in moved]
        original, *others = in_batches(model, logged([PEOPLE[2], *changed], rows=len(changed) + 1)).split(len(items))
        for scores, (t, _) in zip(others, moved, strict=True):
            close(scores[: t + 1], original[: t + 1])

    def test_what_comes_later_changes_nothing(self, model: Model, logged: Log) -> None:
        user, items, times, part = PEOPLE[5]
        cuts = range(1, len(items), 3)
        histories = [(user, items[:cut], times[:cut], part) for cut in cuts]
        pieces = in_batches(model, logged(histories, rows=len(cuts))).split([*cuts])
        whole = in_batches(model, logged([PEOPLE[5]]))
        for cut, scores in zip(cuts, pieces, strict=True):
            close(scores, whole[:cut])

    def test_unknown_items_are_as_if_not_there(self, model: Model, logged: Log) -> None:
        """Within one session, where they leave no gap that would begin another."""
        times = [1_700_000_000 + t for t in range(6)]
        mixed: User = ("a", [1, 0, 2, 8, 8, 3], times, "test")
        known: User = ("a", [1, 2, 3], [times[0], times[2], times[5]], "test")
        scores = in_batches(model, logged([mixed]))
        close(scores[[0, 2, 5]], in_batches(model, logged([known])))
        close(scores[[1, 3, 4]], scores[[2, 5, 5]])

    def test_a_new_person_starts_from_the_zero_state(self, model: Model, logged: Log) -> None:
        state = model.zero_state(3)
        assert state.shape == (3, model.state_size)
        assert state.dtype == model.state_dtype
        assert not state.any()
        firsts = np.cumsum([0, *(len(items) for _, items, _, _ in PEOPLE)])[:-1]
        scores = in_batches(model, logged(PEOPLE))
        for place, (_, _, times, _) in zip(firsts, PEOPLE, strict=True):
            close(scores[place], Person(model, GAP).scores(times[0]))

    def test_scores_cover_the_catalog(self, model: Model, logged: Log) -> None:
        scores = in_batches(model, logged(PEOPLE))
        assert scores.shape == (sum(len(items) for _, items, _, _ in PEOPLE), CATALOG)
        assert scores.isfinite().all()
        if isinstance(model, VectorModel):
            batch, queries = next(passed(model, logged(PEOPLE)))
            vectors, boosts = model.parted(queries)
            assert vectors.shape == (len(batch.items), model.vectors.shape[1])
            full = vectors @ model.vectors.T + (0 if model.bias is None else model.bias)
            close(model.score(queries), full[:, 1:] + (0 if boosts is None else spread(boosts, CATALOG)))

    def test_forward_is_fold_then_encode(self, model: Model, logged: Log) -> None:
        model.eval()
        rng = torch.Generator().manual_seed(0)
        for batch in logged(PEOPLE, rows=4, sessions=3):
            users = len(batch.user_sessions)
            if model.state_dtype.is_floating_point:
                initial = torch.randn(users, model.state_size, generator=rng, dtype=torch.float64)
            else:
                initial = torch.randint(0, CATALOG + 1, (users, model.state_size), generator=rng)
            queries, after = model(batch, initial)
            before, folded = model.fold(batch, initial)
            assert before.shape == (batch.sessions, model.state_size)
            assert after.shape == initial.shape
            close(after.double(), folded.double())
            close(queries.double(), model.encode(batch, before).double())

    def test_gradients_reach_every_parameter(self, model: Model, logged: Log) -> None:
        learns = trainable(model.config) and not remembers(model.config)
        assert learns is bool(list(model.parameters()))
        if not isinstance(model, VectorModel) or not trainable(model.config):
            return
        model.train()
        if isinstance(model.items, GivenItems) and model.items.how == "both":
            # At zero it gives no gradient to what reads the state for it.
            torch.nn.init.normal_(model.items.learned.weight)  # type: ignore[union-attr]
        torch.manual_seed(0)
        for batch, queries in passed(model, logged(PEOPLE)):
            known = batch.targets > 0
            if known.any():
                asked, boosts = model.parted(queries[batch.positions[known]])
                dense = None if boosts is None else spread(boosts, CATALOG)
                cross_entropy(asked, batch.targets[known], model.vectors, model.bias, dense).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    def test_dropout_is_for_training_only(self, model: Model, logged: Log) -> None:
        once = in_batches(model, logged(PEOPLE))
        assert torch.equal(in_batches(model, logged(PEOPLE)), once)
        model.train()
        torch.manual_seed(0)
        one, two = (torch.cat([queries for _, queries in passed(model, logged(PEOPLE))]) for _ in range(2))
        assert torch.equal(one, two) is not bool(getattr(model.config, "dropout", 0.0))

    def test_half_precision_carries_full_states(self, config: ModelConfig, logged: Log) -> None:
        model = build(config, TRAIN_EVENTS, 3, VECTORS).eval()
        precise = torch.cat([queries for _, queries in passed(model, logged(PEOPLE))])
        with torch.autocast("cpu", torch.bfloat16):
            rough = torch.cat([queries for _, queries in passed(model, logged(PEOPLE))])
            carried = model.zero_state(3)
            for batch in logged(PEOPLE):
                carried = batch.carry(carried, model.fold(batch, batch.initial(carried))[1])
        assert carried.dtype == model.state_dtype
        spread = float(precise.detach().abs().max()) if precise.numel() else 1.0
        torch.testing.assert_close(rough.to(precise.dtype), precise, rtol=0.05, atol=0.05 * max(spread, 1.0))

    def test_the_seed_makes_the_weights(self, config: ModelConfig) -> None:
        torch.manual_seed(11)
        before = torch.get_rng_state()
        one, same, other = (build(config, TRAIN_EVENTS, seed, VECTORS).state_dict() for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(12)
        again = build(config, TRAIN_EVENTS, 1, VECTORS).state_dict()
        assert all(torch.equal(value, same[name]) and torch.equal(value, again[name]) for name, value in one.items())
        assert all(torch.equal(value, other[name]) for name, value in one.items()) is not (
            trainable(config) and not remembers(config)
        )


def test_popularity_and_last_items_rank_by_their_rule(logged: Log) -> None:
    user: User = ("a", [4, 6, 4, 2], [0, 1, 2, 9000], "test")
    popular, last = (build(c, TRAIN_EVENTS, 0) for c in (PopularityConfig(), LastItemsConfig(window=3)))
    by_popularity = [3, 5, 1, 2, 6, 4]
    assert (in_batches(popular, logged([user])).argsort(1, descending=True) + 1).tolist() == [by_popularity] * 4
    assert (in_batches(last, logged([user])).argsort(1, descending=True) + 1).tolist() == [
        by_popularity,
        [4, 3, 5, 1, 2, 6],
        [6, 4, 3, 5, 1, 2],
        [4, 6, 3, 5, 1, 2],
    ]


def test_moving_average_is_the_mean_of_the_last_vectors(logged: Log) -> None:
    model = build(MovingAverageConfig(dim=4, window=3), TRAIN_EVENTS, 0).double()
    items = [4, 6, 4, 0, 2, 1]
    user: User = ("a", items, [0, 1, 9000, 9001, 9002, 90000], "test")
    vectors = model.state_dict()["items.weight"]
    means = [vectors[rows].sum(0) / max(len(rows), 1) for rows in [[], [4], [4, 6], [4, 6, 4], [4, 6, 4], [6, 4, 2]]]
    close(in_batches(model, logged([user])), torch.stack(means) @ vectors[1:].T)
