"""PinSage: its parts against their formulas, planted communities found, new items placed without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from typer.testing import CliRunner

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.cli import app
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.neighbourhoods import Baskets, baskets_of, walked
from hiertcn.pinsage import PinSage, PinSageConfig, load_pinsage, train_pinsage
from hiertcn.preparation import prepare
from logs import BEGIN

GAP = 1800
SMALL = PinSageConfig(
    dim=8, hidden=32, near=4, further=4, hard=2, batch=64, negatives=20, steps=300, walks=50, margin=0.3
)


def log_of(items: int, seed: int, communities: int = 4, users: int = 40, sessions: int = 800) -> pl.DataFrame:
    """Sessions of 2 to 6 picks out of one community; item i.c belongs to community c."""
    rng = np.random.default_rng(seed)
    rows, now = [], BEGIN
    for session in range(sessions):
        now += 10_000
        community = int(rng.integers(communities))
        picks = rng.choice(items, int(rng.integers(2, 7))).tolist()
        rows += [(session % users, f"{pick}.{community}", now + 60 * k) for k, pick in enumerate(picks)]
    return pl.DataFrame(rows, schema=["user", "item", "ts"], orient="row")


def community(cache: Cache) -> np.ndarray:
    return cache.catalog.items["item_id"].str.split(".").list.last().to_numpy()


def assert_found(vectors: np.ndarray, groups: np.ndarray) -> None:
    """Of the five items nearest to each nearly all are of its community; by chance a fourth would be."""
    near = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(near), 1, atol=1e-5)
    np.fill_diagonal(near, -1)
    assert (groups[near.argsort(1)[:, -5:]] == groups[:, None]).mean() > 0.97


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return prepare(log_of(8, 0), tmp_path_factory.mktemp("log") / "cache", session_gap=GAP, events_per_shard=700)


@pytest.fixture(scope="module")
def trained(cache: Cache) -> PinSage:
    return train_pinsage(cache, SMALL, seed=0)[0]


edges = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(edges, st.integers(1, 3))
def test_walks_reach_what_they_can_as_often_as_they_should(picks: list[tuple[int, int]], steps: int) -> None:
    """Against the powers of the transition matrix."""
    items, baskets = (np.array(column) for column in zip(*picks, strict=True))
    incidence = np.zeros((8, 5))
    np.add.at(incidence, (items, baskets), 1)
    with np.errstate(invalid="ignore"):
        there, back = incidence / incidence.sum(1, keepdims=True), (incidence / incidence.sum(0)).T
    move = np.nan_to_num(there) @ np.nan_to_num(back)
    expected = sum(np.linalg.matrix_power(move, k) for k in range(1, steps + 1))
    np.fill_diagonal(expected, 0)
    found = walked(Baskets(items, baskets, 8), 8, 0, 4000, steps, seed=1)
    shares = np.zeros((8, 8))
    for row in range(8):
        shares[row, found.near[row][found.near[row] > 0]] = found.weights[row][found.near[row] > 0]
        assert (np.diff(found.weights[row]) <= 0).all()
    sums = expected.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, np.divide(expected, sums, where=sums > 0, out=np.zeros((8, 8))), atol=0.06)


def test_further_items_are_those_behind_the_neighbourhood(cache: Cache) -> None:
    graph = baskets_of(cache, "train")
    whole, cut = walked(graph, 8, 0, 50, 3, seed=0), walked(graph, 3, 5, 50, 3, seed=0)
    np.testing.assert_array_equal(np.concatenate([cut.near, cut.further], axis=1), whole.near)
    np.testing.assert_allclose(cut.weights.sum(1)[1:], 1, atol=1e-6)


def test_baskets_are_sessions_and_if_asked_users(cache: Cache) -> None:
    """Of two items that one user has in two sessions, only the user tells."""
    log = pl.DataFrame({"user": [1, 1, 2, 2], "item": list("abcc"), "ts": [BEGIN, BEGIN + GAP, BEGIN, BEGIN + 1]})
    own = prepare(log, cache.path.parent / "two", session_gap=GAP, split="users", fractions=(1, 0, 0), overwrite=True)
    a, b = own.catalog.row("a"), own.catalog.row("b")
    for users, expected in ((False, 0), (True, b)):
        found = walked(baskets_of(own, "train", users), 2, 0, 50, 2, seed=0)
        assert found.near[a].tolist() == [expected, 0]


def test_a_forward_pass_is_that_of_a_slow_one(cache: Cache, trained: PinSage) -> None:
    """Two convolutions item by item, from the formula."""
    nodes = trained.nodes(cache, baskets_of(cache, "train"), seed=3)

    def hidden(row: int, level: int) -> torch.Tensor:
        if level == 0:
            return trained.learned.weight[row]
        layer = trained.layers[level - 1]
        near = torch.zeros(SMALL.hidden)
        for other, weight in zip(nodes.near[row].tolist(), nodes.weights[row].tolist(), strict=True):
            if other:
                near = near + weight * F.relu(layer.near(hidden(other, level - 1)))
        return F.normalize(F.relu(layer.both(torch.cat([hidden(row, level - 1), near]))), dim=0)

    found = trained.embed(nodes)
    for row in (1, 7, cache.manifest.items):
        with torch.inference_mode():
            expected = F.normalize(trained.head(hidden(row, 2)), dim=0)
        np.testing.assert_allclose(found[row], expected.numpy(), atol=1e-5)
    assert not found[0].any()


def test_planted_communities_are_found(cache: Cache, trained: PinSage) -> None:
    vectors = trained.embed(trained.nodes(cache, baskets_of(cache, "train"), seed=0))
    assert_found(vectors[1:], community(cache))


def test_training_follows_its_seed(cache: Cache) -> None:
    short = SMALL.model_copy(update={"steps": 5})
    state = torch.get_rng_state()
    first, again, other = (train_pinsage(cache, short, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)


def test_new_items_stand_where_their_neighbours_stand(cache: Cache, trained: PinSage, tmp_path: Path) -> None:
    """A log of the same items and four more of each community, on which nothing is trained."""
    later = prepare(log_of(12, seed=5), tmp_path / "later", session_gap=GAP, split="time")
    vectors = trained.embed_all(later)
    assert_found(vectors[1:], community(later))
    np.testing.assert_array_equal(trained.embed_all(later), vectors)
    # Without any item that it knows, too.
    new = log_of(8, seed=6).with_columns("new-" + pl.col("item"))
    strange = prepare(new, tmp_path / "new", session_gap=GAP)
    assert_found(trained.embed_all(strange)[1:], community(strange))


def test_titles_tell_of_items_that_were_never_picked(tmp_path: Path) -> None:
    words = ["football goal league", "election vote party", "recipe oven flour", "phone chip screen"]
    names = [f"{k}.{c}" for c in range(4) for k in range(12)]
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.permutation(words[int(name[-1])].split())) for name in names]
    pl.DataFrame({"item_id": names, "title": titles}).write_parquet(tmp_path / "items.parquet")
    cache = prepare(log_of(8, 0), tmp_path / "cache", session_gap=GAP, catalog=tmp_path / "items.parquet")
    model, vectors = train_pinsage(cache, SMALL, seed=0)
    cold = cache.catalog.train_events[1:] == 0
    assert cold.sum() == 16
    groups = community(cache)
    near = vectors[1:][cold] @ vectors[1:][~cold].T
    same = groups[cold][:, None] == groups[~cold][None, :]
    means = [[row[mask].mean() for mask in (same_row, ~same_row)] for row, same_row in zip(near, same, strict=True)]
    assert all(own > other + 0.2 for own, other in means)
    # Of items without a title, one that is never picked has no vector, and a new one is read by its neighbours.
    bare = pl.DataFrame({"item_id": [*names, "alone"], "title": [*titles[:-12], *[None] * 13]})
    bare.write_parquet(tmp_path / "bare.parquet")
    other = prepare(log_of(12, 5), tmp_path / "other", session_gap=GAP, catalog=tmp_path / "bare.parquet")
    found = model.embed_all(other)
    assert [
        name for name, vector in zip(other.catalog.items["item_id"], found[1:], strict=True) if not vector.any()
    ] == ["alone"]
    plain = prepare(log_of(8, 0), tmp_path / "plain", session_gap=GAP)
    with pytest.raises(InputError, match=r"size 0 \(none\), and PinSage was trained on others \(titles\)"):
        model.embed_all(plain)


def test_it_comes_back_from_disk(cache: Cache, trained: PinSage, tmp_path: Path) -> None:
    trained.save(tmp_path / "kept")
    trained.save(tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3
    again = load_pinsage(tmp_path / "kept")
    np.testing.assert_array_equal(again.embed_all(cache), trained.embed_all(cache))
    weights = next((tmp_path / "kept").glob("weights-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        load_pinsage(tmp_path / "kept")
    with pytest.raises(InputError, match="holds no PinSage"):
        load_pinsage(tmp_path)
    for taken in (tmp_path, weights):
        with pytest.raises(InputError, match="is there and holds no PinSage"):
            trained.save(taken)
    with pytest.raises(StorageError):
        trained.save(weights / "inside")


def test_a_log_without_pairs_is_refused(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": [1, 1, 2, 2], "item": list("abab"), "ts": [BEGIN + GAP * k for k in range(4)]})
    with pytest.raises(InputError, match="No two items of"):
        train_pinsage(prepare(log, tmp_path / "cache", session_gap=GAP), SMALL, seed=0)


def test_from_a_log_to_items_that_came_after_training(tmp_path: Path) -> None:
    """embed, prepare, train; then a later log: embed by what was kept, catalog add, recommend."""

    def ask(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    log_of(8, 0).write_parquet(tmp_path / "log.parquet")
    log_of(12, 5).write_parquet(tmp_path / "later.parquet")
    options = ("--method", "pinsage", "--session-gap", GAP)
    said = ask(
        "embed",
        tmp_path / "log.parquet",
        "--out",
        tmp_path / "a.parquet",
        "--dim",
        8,
        "--steps",
        60,
        "--save",
        tmp_path / "kept",
        *options,
    )
    assert "vectors of 32 items" in said
    prepared = ("prepare", tmp_path / "log.parquet", "--catalog", tmp_path / "a.parquet", "--out")
    assert "another part" not in ask(*prepared, tmp_path / "cache", "--session-gap", GAP)
    assert "made of another part" in ask(*prepared, tmp_path / "other", "--split", "users")
    ask("train", tmp_path / "cache", "--out", tmp_path / "run", "--epochs", 1)
    ask("embed", tmp_path / "later.parquet", "--out", tmp_path / "b.parquet", "--load", tmp_path / "kept", *options)
    assert pl.read_parquet(tmp_path / "b.parquet").height == 48
    assert "16 item(s) added" in ask("catalog", "add", tmp_path / "run", tmp_path / "b.parquet", "--skip-known")
    assert "0 item(s) added" in ask("catalog", "add", tmp_path / "run", tmp_path / "b.parquet", "--skip-known")
    run = Run(tmp_path / "run")
    assert run.catalog.size == 48
    listed = pl.read_parquet(tmp_path / "b.parquet")
    for name, vector in listed.select("item_id", "embedding").iter_rows():
        if name.startswith(("8", "9", "10", "11")):
            np.testing.assert_array_equal(run.vectors[run.catalog.row(name)], np.array(vector, np.float32))
    log_of(12, 5).filter(pl.col("user") == 3).write_csv(tmp_path / "person.csv")
    assert len(ask("recommend", tmp_path / "run", "--history", tmp_path / "person.csv", "-k", 48).splitlines()) == 48


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--method", "word2vec"], "expected svd or pinsage"),
        (["--save", "x"], "are of --method pinsage"),
        (["--steps", "3"], "are of --method pinsage"),
        (["--method", "pinsage", "--save", "x", "--load", "y"], "nothing is trained"),
        (["--method", "pinsage", "--dim", "8", "--load", "y"], "nothing is trained"),
        (["--method", "pinsage", "--load", "y"], "holds no PinSage"),
        (["--out", "items.csv"], "the item list is Parquet"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options: list[str], text: str) -> None:
    done = CliRunner().invoke(app, ["embed", "log.parquet", "--out", "items.parquet", *options])
    assert isinstance(done.exception, InputError)
    assert text in str(done.exception)
