"""Models that boost single items: what is added to which score, and never by what is not known yet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from caches import User, batches_of, cache_of
from crowds import CATALOG, HORIZONS, START, dense
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.crowd import Crowd
from hiertcn.errors import ArtifactError, InputError
from hiertcn.evaluation import evaluate, evaluate_model
from hiertcn.losses import cross_entropy, sampled_softmax
from hiertcn.models import HierTCNConfig, TrendingConfig, VectorModel, build
from hiertcn.models.boosts import RepeatBoosts, among, of_rows, spread
from hiertcn.negatives import Negatives
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.settings import TrainConfig
from hiertcn.streams import crowd_of, known_rows
from hiertcn.training import train
from runs import relisted, weights_of
from scoring import in_batches

SMALL: dict[str, Any] = {"dim": 8, "units": 6, "channels": (8, 8), "kernel": 3}


def test_repeats_boost_the_last_items_of_this_session_and_of_those_before(tmp_path: Path) -> None:
    """By how long ago they were picked; an item picked twice has both boosts, one picked too long ago has none."""
    users: list[User] = [("u", [5, 1, 2, 1, 4], [START - 9000, START, START + 1, START + 2, START + 3], "test")]
    cache = cache_of(tmp_path / "cache", users, 1800, CATALOG)
    models = [build(HierTCNConfig(**SMALL, repeats=last), cache.catalog.train_events, 0).eval() for last in (0, 3)]
    boosts = models[1].repeat_boosts
    assert isinstance(boosts, RepeatBoosts)
    with torch.no_grad():
        models[1].load_state_dict(models[0].state_dict(), strict=False)
        boosts.weigh.weight.zero_()
        # Picked 1, –, 2, 3 items ago in the session, then before it; weights count five times.
        boosts.bias.copy_(torch.tensor([1.0, 0.0, 10.0, 100.0, 2.0, 0.0, 20.0, 200.0]) / 5)
    for rows, sessions, chunk in ((1, 9, 9), (1, 1, 1)):
        without, found = (
            in_batches(model, batches_of(cache, "test", rows=rows, sessions=sessions, chunk=chunk)) for model in models
        )
        expected = torch.zeros(5, CATALOG)
        expected[1, 4] = 2
        expected[2, [4, 0]] = torch.tensor([20.0, 1.0])
        expected[3, [4, 0, 1]] = torch.tensor([200.0, 10.0, 1.0])
        expected[4, [0, 1]] = torch.tensor([101.0, 10.0])
        torch.testing.assert_close(found - without, expected, atol=1e-4, rtol=0)


def drawn(queries: int, seed: int) -> torch.Tensor:
    """Boosts [T, 2J] of rows some of which come several times, and of none."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, CATALOG + 1, (queries, 9))
    return torch.from_numpy(np.concatenate([rows, rng.normal(size=rows.shape)], axis=1))


def test_boosts_of_some_items_are_those_of_the_whole_catalog() -> None:
    tail = drawn(5, 0)
    whole = spread(tail, CATALOG)
    expected = torch.zeros(5, CATALOG + 1, dtype=torch.double)
    for query, (rows, boosts) in enumerate(zip(tail[:, :9].long().tolist(), tail[:, 9:].tolist(), strict=True)):
        for row, boost in zip(rows, boosts, strict=True):
            expected[query, row] += boost
    torch.testing.assert_close(whole, expected[:, 1:])
    asked = torch.tensor([3, 1, 3, 6])
    torch.testing.assert_close(among(tail, asked), whole[:, asked - 1])
    own = torch.from_numpy(np.random.default_rng(1).integers(1, CATALOG + 1, (5, 4)))
    torch.testing.assert_close(of_rows(tail, own), whole.gather(1, own - 1))


def test_the_losses_are_those_of_the_boosted_scores() -> None:
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 4, generator=rng, dtype=torch.double, requires_grad=True)
    vectors = torch.randn(CATALOG + 1, 4, generator=rng, dtype=torch.double, requires_grad=True)
    tail, targets = drawn(5, 2), torch.tensor([1, 2, 3, 6, 6])
    boosts = spread(tail, CATALOG).requires_grad_()
    scores = queries @ vectors[1:].T + boosts
    leaves = [queries, vectors, boosts]
    for ours, plain in (
        (cross_entropy(queries, targets, vectors, None, boosts), F.cross_entropy(scores, targets - 1)),
        (sampled(queries, vectors, boosts, targets), slow_sampled(scores, targets)),
    ):
        torch.testing.assert_close(ours, plain)
        pairs = zip(
            torch.autograd.grad(ours, leaves), torch.autograd.grad(plain, leaves, retain_graph=True), strict=True
        )
        for got, expected in pairs:
            torch.testing.assert_close(got, expected)


NEGATIVES = Negatives(torch.tensor([2, 5, 2, 6]), torch.tensor([0.0, 0.3, 0.5, 0.2, 0.9, 0.4, 0.6]).double())


def sampled(queries: torch.Tensor, vectors: torch.Tensor, boosts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    own, others = boosts.gather(1, targets.unsqueeze(1) - 1).squeeze(1), boosts[:, NEGATIVES.rows - 1]
    return sampled_softmax(queries, targets, lambda rows: (vectors[rows], None), NEGATIVES, (own, others))


def slow_sampled(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    corrected = scores - NEGATIVES.expected[1:].log()
    losses = []
    for query, target in enumerate(targets.tolist()):
        others = [row for row in NEGATIVES.rows.tolist() if row != target]
        asked = corrected[query, torch.tensor([target, *others]) - 1]
        losses.append(-asked.log_softmax(0)[0])
    return torch.stack(losses).mean()


def crowded(users: int, seed: int, hours: int = 60) -> pl.DataFrame:
    """Each hour has an item of its own, which everybody picks then; who picks what else says nothing."""
    rng = np.random.default_rng(seed)
    hour = rng.integers(0, hours, (users, 12))
    hour.sort(axis=1)
    hot = rng.integers(0, 40, hours)
    return pl.DataFrame(
        {
            "user": np.repeat([f"u{k}" for k in range(users)], 12),
            "item": [f"i{k}" for k in hot[hour].ravel()],
            "ts": START + (hour * 3600 + rng.integers(0, 3600, hour.shape)).ravel(),
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return prepare(crowded(150, 0), tmp_path_factory.mktemp("crowd") / "cache", session_gap=600, split="users")


TRAIN = TrainConfig(epochs=6, learning_rate=0.01, patience=6, device="cpu")


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = HierTCNConfig(**SMALL, trends=(0.2, 2.0), follows=(1.0,))
    return train(cache, config, TRAIN, tmp_path_factory.mktemp("crowd") / "run")


def test_what_only_the_crowd_can_tell_is_found(cache: Cache, run: Run, tmp_path: Path) -> None:
    without = train(cache, HierTCNConfig(**SMALL), TRAIN, tmp_path / "without")
    assert evaluate(without).table.event["mrr"] < 0.3
    assert 0.6 < evaluate(run).table.event["mrr"] < 0.98
    trending = evaluate_model(build(TrendingConfig(), cache.catalog.train_events, 0), cache.catalog, cache, "test")
    assert 0.6 < trending.table.event["mrr"] < 0.98


def chained(users: int, seed: int, hours: int = 24, items: int = 30) -> pl.DataFrame:
    """Each hour has an order of its own, by which an item follows another; all are picked alike."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(items) for _ in range(hours)])
    hour = np.sort(rng.integers(0, hours, users))
    picked = [rng.integers(0, items, users)]
    for _ in range(7):
        picked.append(order[hour, picked[-1]])
    time = START + hour * 3600 + rng.integers(0, 3000, users)
    return pl.DataFrame(
        {
            "user": np.repeat([f"u{k}" for k in range(users)], 8),
            "item": [f"i{k}" for k in np.stack(picked, axis=1).ravel()],
            "ts": (time[:, None] + 30 * np.arange(8)).ravel(),
        }
    )


def test_what_only_the_follows_can_tell_is_found(tmp_path: Path) -> None:
    cache = prepare(chained(400, 0), tmp_path / "cache", session_gap=600, split="users")
    found = {
        name: evaluate(train(cache, HierTCNConfig(**SMALL, **boosts), TRAIN, tmp_path / name)).table.event["mrr"]
        for name, boosts in (("follows", {"follows": (0.5,)}), ("trends", {"trends": (0.1, 0.5)}))
    }
    assert found["trends"] < 0.3
    assert 0.5 < found["follows"] < 0.95


def test_training_hears_the_train_part_alone(cache: Cache, tmp_path: Path) -> None:
    """Whatever others pick in the other parts, one pass leads to the same weights."""
    weights = []
    log = crowded(150, 0)
    parts = np.repeat(np.random.default_rng(3).choice(["train", "valid", "test"], 150), 12)
    for number in range(2):
        told = log.with_columns(part=pl.Series(parts))
        if number:
            changed = pl.when(pl.col("part") == "train").then("item").otherwise(pl.lit("i1"))
            told = told.with_columns(
                item=changed, ts=pl.col("ts") + pl.when(pl.col("part") == "train").then(0).otherwise(99)
            )
        other = prepare(told, tmp_path / f"cache{number}", session_gap=600, split="column:part")
        config = HierTCNConfig(**SMALL, trends=(0.2, 2.0), follows=(1.0,))
        train(other, config, TRAIN.model_copy(update={"epochs": 1}), tmp_path / f"run{number}")
        weights.append(weights_of(tmp_path / f"run{number}"))
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        np.testing.assert_array_equal(values, weights[1][name])


def test_nothing_follows_across_sessions_or_people(cache: Cache) -> None:
    """At a session's first position nothing is known to follow; later what came after the item before it."""
    rows = known_rows(cache.catalog)
    known = crowd_of(cache, "test", rows, HORIZONS)
    assert known is not None
    later = 0
    for batch in batches_of(cache, "test", rows=3, sessions=9, chunk=9, crowd=known):
        begin, source = batch.lag(1)
        assert not batch.crowd_rows[:begin, 2].any()
        expected, weights = known.at(batch.seen[begin:].numpy(), batch.items[source].numpy())
        torch.testing.assert_close(batch.crowd_rows[begin:], torch.from_numpy(expected))
        torch.testing.assert_close(batch.crowd_weights[begin:], torch.from_numpy(weights))
        later += int((weights[:, 2] > 0).sum())
    assert later > 0


def test_sampled_negatives_learn_it_too(cache: Cache, tmp_path: Path) -> None:
    config = TRAIN.model_copy(update={"loss": "sampled_softmax", "uniform_negatives": 8, "popular_negatives": 8})
    found = train(cache, HierTCNConfig(**SMALL, trends=(0.2,)), config, tmp_path / "run")
    assert evaluate(found).table.event["mrr"] > 0.5


def test_scores_of_some_items_are_those_of_the_catalog(cache: Cache, run: Run) -> None:
    model = run.model
    assert isinstance(model, VectorModel)
    rows = known_rows(cache.catalog)
    batch = next(iter(batches_of(cache, "test", crowd=crowd_of(cache, "test", rows, model.horizons))))
    with torch.no_grad():
        queries, _ = model(batch, model.zero_state(len(batch.user_sessions)))
        some = torch.from_numpy(np.random.default_rng(0).integers(1, model.items_in_catalog + 1, (len(queries), 5)))
        whole = model.score(queries)
        torch.testing.assert_close(model.score_rows(queries, some), whole.gather(1, some - 1), atol=1e-5, rtol=0)
        vectors, boosts = model.parted(queries)
        assert not torch.allclose(model.score(vectors), whole)
    assert vectors.shape[1] == model.query_size
    assert boosts is not None


def test_an_event_changes_no_score_before_it(cache: Cache, run: Run, tmp_path: Path) -> None:
    """Neither its item nor, within its session, its time; and what comes later to others changes nothing."""
    users: list[User] = [
        ("u", [1, 2, 3, 4], [START, START + 70, START + 140, START + 9000], "test"),
        ("v", [5, 6, 5], [START + 30, START + 65, START + 9050], "test"),
    ]
    changes: list[tuple[int, int, int, int]] = [(0, 2, 6, 0), (0, 2, 3, 100), (1, 2, 1, 0), (0, 3, 1, 0)]

    def scores(name: str, users: list[User]) -> torch.Tensor:
        log = cache_of(tmp_path / name, users, 600, run.model.items_in_catalog)
        known = crowd_of(log, "test", known_rows(log.catalog), run.model.horizons)
        return in_batches(run.model, batches_of(log, "test", rows=2, sessions=9, chunk=9, crowd=known))

    original = scores("original", users)
    times = np.concatenate([np.array(user[2]) for user in users])
    begins = np.array([1, 0, 0, 1, 1, 0, 1], dtype=bool)
    known = np.where(begins, times, np.append(0, times)[:-1])
    for number, (who, place, item, later) in enumerate(changes):
        changed = [(user, list(items), list(at), part) for user, items, at, part in users]
        changed[who][1][place] = item
        changed[who][2][place] += later
        found = scores(f"changed{number}", changed)
        same = known <= times[who * 4 + place]
        torch.testing.assert_close(found[same], original[same], rtol=0, atol=1e-6)


def test_online_everybody_is_heard_as_in_evaluation(cache: Cache, run: Run) -> None:
    """All events are observed in the order of time, with the crowd empty at first; each is ranked before it comes."""
    evaluated = evaluate(run)
    log = evaluated.predictions()
    expected = {(user, time): rank for user, time, _, rank, _ in log.iter_rows()}
    events = crowded(150, 0).unique(maintain_order=True).sort("ts", maintain_order=True)
    compared, item_ids = 0, set(run.catalog.ids)
    heard = Crowd(run.model.horizons, run.catalog.size)
    with Recommender.load(run, crowd=heard) as rec:
        for user, item, time in events.iter_rows():
            rank = expected.get((user, time))
            if rank is not None and compared < 60 and item in item_ids:
                order = [one.item for one in rec.recommend(user, 40, time=time)]
                assert abs(order.index(item) + 1 - rank) <= 0.5
                compared += 1
            rec.observe(user, item, time)
        assert {one.source for one in rec.recommend("nobody", time=float(events["ts"].max()))} == {"model"}
        assert {one.source for one in rec.recommend("nobody")} == {"popular"}
        whole = crowd_of(cache, "test", known_rows(cache.catalog), run.model.horizons)
        assert whole is not None
        end = np.full(run.catalog.size, float(events["ts"].max()) + 90)  # type: ignore[arg-type]
        every = np.arange(1, run.catalog.size + 1)
        ours, theirs = (dense(*one.at(end, every), run.catalog.size) for one in (heard, whole))
        assert theirs[:, 2].any()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    assert compared == 60


def test_a_run_goes_on_from_the_end_of_its_log(cache: Cache, run: Run, tmp_path: Path) -> None:
    known = crowd_of(cache, "test", known_rows(cache.catalog), run.model.horizons)
    kept = run.crowd()
    assert known is not None
    assert kept is not None
    end = crowded(150, 0)["ts"].max()
    at = np.array([float(end) + 120]), np.array([3])  # type: ignore[arg-type]
    size = cache.catalog.size
    np.testing.assert_allclose(dense(*kept.at(*at), size), dense(*known.at(*at), size), rtol=1e-5, atol=1e-7)


def test_a_damaged_crowd_is_refused(run: Run, tmp_path: Path) -> None:
    (kept,) = run.path.glob("crowd-*.safetensors")
    good = load_file(kept)
    damages = [{"picked": good["picked"] + 99}, {"weights": -1 - good["weights"]}, {"times": good["times"][1:]}]
    damages += [{"begin": torch.tensor(-1)}, {"begin": torch.tensor(1 << 55)}, {"weights": good["begin"].clone()}]
    damages += [{"weights": good["weights"].bfloat16()}, {"weights": good["weights"] + 1e300}]
    damages += [{"items": good["items"].to(torch.int8)}, {"begin": torch.tensor(float("inf"))}]
    for number, damage in enumerate(damages):
        folder = tmp_path / str(number)
        shutil.copytree(run.path, folder)
        save_file(good | damage, folder / "crowd-0.safetensors")
        relisted(folder, "crowd", "crowd-0.safetensors")
        with pytest.raises(ArtifactError, match="crowd is damaged"):
            Recommender.load(folder)


def test_what_can_not_learn_or_hold_it_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="increasing"):
        HierTCNConfig(trends=(2.0, 1.0))
    with pytest.raises(InputError, match="does not learn how much to boost"):
        train(cache, HierTCNConfig(follows=(1.0,)), TrainConfig(loss="bpr"), tmp_path / "run")
