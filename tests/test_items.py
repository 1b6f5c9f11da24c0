"""Items put, withdrawn and restored while serving: what is recommended then, here, after a restart, and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exports import HEARD, ITEMS
from hiertcn.artifact import Run
from hiertcn.assortment import add_items
from hiertcn.door import Ask
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import Recommender
from hiertcn.retrieval import ExactIndex
from hiertcn.scoring import compared
from hiertcn.states import MemoryStates, Update
from hiertcn.stock import Shrinks, Stated, Stock
from people import GAP, SIZES, START, assert_alike, catalog_of, run_of
from stores import opened
from test_exported import saved

DIM = 5
NEW = ("new-a", "new-b", "new-c")


def vectors_of(count: int, seed: int = 3, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """[count + 1, DIM], nothing at row 0."""
    vectors = np.random.default_rng(seed).normal(size=(count + 1, DIM)).astype(dtype)
    vectors[0] = 0
    return vectors


def shop(path: Path, dtype: Any = np.float32, **options: Any) -> Run:
    """An untrained model on given vectors."""
    config = HierTCNConfig.model_validate({**SIZES, "vectors": "fixed", **options})
    return saved(path, config, vectors_of(ITEMS, dtype=dtype))


def some_new(seed: int = 7) -> list[Stated]:
    return [Stated(name, vector.tolist()) for name, vector in zip(NEW, vectors_of(3, seed)[1:], strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(export(shop(tmp_path_factory.mktemp("shop") / "run", **HEARD, ranking="l2")))


def listened(rec: Recommender) -> Recommender:
    rec.listen()
    return rec


def model_of(stock: Stock) -> Exported:
    assert isinstance(stock.model, Exported)
    return stock.model


def items_of(rec: Recommender, user: str = "u", **options: Any) -> set[Any]:
    return {one.item for one in rec.recommend(user, 500, **options)}


@pytest.mark.parametrize(
    ("how", "ranking", "dtype"),
    [
        ("fixed", "inner", np.float16),
        ("tuned", "l2", np.float32),
        ("both", "l2", np.float32),
        ("fixed", "l2", np.float32),
    ],
)
def test_what_is_put_counts_as_if_it_was_added_and_exported(
    tmp_path: Path, how: str, ranking: str, dtype: type
) -> None:
    """Events on new items, in sessions that are over and in the running one, make the same queries and scores as those
    of a run whose catalog was extended, by torch."""
    run = shop(tmp_path / "run", dtype, **HEARD, vectors=how, ranking=ranking, gap_decay="fixed")
    before = Exported(export(run))
    listing = {"item_id": list(NEW), "vector": [one.vector for one in some_new()]}
    pl.DataFrame(listing).write_parquet(tmp_path / "new.parquet")
    add_items(run.path, tmp_path / "new.parquet")
    ours, theirs = Recommender(before, MemoryStates()), Recommender.load(run.path)
    assert ours.stock.put(some_new()) == [True] * 3
    listened(ours)
    picks = ["i03", "new-b", "i07", "new-a", "new-b", "i01", "new-c"]
    waits = np.cumsum([0, 60, 2 * GAP, 60, GAP, 9 * GAP, 60])
    for wait, item in zip(waits.tolist(), picks, strict=True):
        assert [rec.observe("u", item, START + wait) for rec in (ours, theirs)] == ["applied"] * 2
    at = START + int(waits[-1]) + 30
    np.testing.assert_allclose(ours.query("u", at), theirs.query("u", at), atol=1e-5, rtol=1e-5)
    scores = theirs.scores("u", at)
    np.testing.assert_allclose(ours.scores("u", at), scores, atol=1e-5, rtol=1e-5)
    assert_alike(ours.recommend("u", 500, time=at), theirs.recommend("u", 500, time=at))


_NAMES = [*(f"i{row:02}" for row in range(1, ITEMS + 1)), *NEW]
_CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "withdraw", "restore"]), st.lists(st.sampled_from(_NAMES), max_size=6)),
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_CHANGES, st.integers(0, 99))
def test_every_way_recommends_what_is_there(model: Exported, changes: Any, seed: int) -> None:
    """By all scores, by an index that heard of each change, and after a restart, which hears of all at once."""
    store, random = MemoryStates(), np.random.default_rng(seed)
    with ExactIndex(compared(model)) as index:
        searched = Recommender(model, store, index=index)
        known, withdrawn = {f"i{row:02}" for row in range(1, ITEMS + 1)}, set[str]()
        for act, names in changes:
            if act == "put":
                searched.stock.put([Stated(name, random.normal(size=DIM).tolist()) for name in names])
                known |= set(names)
            elif act == "withdraw":
                assert searched.stock.withdraw(names, allow_shrink=True) == [name in known for name in names]
                withdrawn |= set(names) & known
            else:
                searched.stock.restore(names)
                withdrawn -= set(names)
            listened(searched)
        dense = Recommender(model, store)
        for number, name in enumerate(random.choice(sorted(known), 5)):
            searched.observe("u", str(name), START + 60 * number)
        listened(dense)
        for time in (START + 300, START + 300 + 3 * GAP):
            found = searched.recommend("u", 500, time=time)
            assert {one.item for one in found} == known - withdrawn
            assert_alike(found, dense.recommend("u", 500, time=time))
        assert (
            items_of(searched, "nobody")
            == known - withdrawn
            == {item for item, _, _ in dense.stock.listed(dense.popular(Ask("nobody", 500)).best)}
        )


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_what_was_changed_is_kept_and_heard(
    model: Exported, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with opened(kind, request, tmp_path) as store:
        rec, other = Recommender(model, store), Recommender(model, store)
        rec.stock.put([*some_new(), Stated("i02", title="Two")])
        rec.stock.withdraw(["i01", "new-c"])
        rec.observe("u", "new-a", START)
        # It heard of the pick, and so of the item before.
        other._hearing.listen()
        assert other.knows("new-a")
        again = Recommender(model, store)
        for one in (listened(rec), listened(other), again):
            assert items_of(one) == set(_NAMES) - {"i01", "new-c"}
            assert one.stock.title(2) == "Two"
            assert one.stock.row("new-c") == ITEMS + 3
            assert_alike(one.recommend("u", 30, time=START + 60), rec.recommend("u", 30, time=START + 60))


def test_an_added_item_keeps_its_name_when_the_catalog_grows(tmp_path: Path) -> None:
    """A state holds the last items of a user; rows behind the catalog are others once it has grown."""
    run = shop(tmp_path / "run", repeats=4)
    store = MemoryStates()
    rec = Recommender(Exported(export(run)), store, lateness=0.0)
    rec.stock.put(some_new()[:2])
    listened(rec)
    for number, item in enumerate(["new-b", "i05", "new-a"]):
        rec.observe("u", item, START + 2 * GAP * number)
    pl.DataFrame({"item_id": ["other"], "vector": [[1.0] * DIM]}).write_parquet(tmp_path / "new.parquet")
    add_items(run.path, tmp_path / "new.parquet")
    longer = Recommender(Exported(export(run.path)), store, lateness=0.0)
    assert longer.digest == rec.digest
    assert (longer.stock.row("other"), longer.stock.row("new-b")) == (ITEMS + 1, ITEMS + 3)
    rows = [one._model.parted(one._query("u", START + 9 * GAP))[1][0] for one in (rec, longer)]
    assert [rec.stock.id(row) for row in rows[0] if row] == [longer.stock.id(row) for row in rows[1] if row]
    assert {longer.stock.id(row) for row in rows[1] if row} == {"new-a", "new-b", "i05"}
    # One that knows of no such items passes over them.
    unaware = Recommender.load(run.path, store, lateness=0.0)
    rows = [unaware._model.parted(unaware._query("u", START + 9 * GAP))[1][0]]
    assert {unaware.stock.id(row) for row in rows[0] if row} == {"i05"}


def test_another_model_takes_in_what_fits(tmp_path: Path) -> None:
    store = MemoryStates()
    first = Recommender(Exported(export(shop(tmp_path / "first"))), store)
    first.stock.put([*some_new(), Stated("i04", [1.0] * DIM)])
    first.stock.withdraw(["i02", "new-a"])
    learned = run_of(tmp_path / "learned", HierTCNConfig(**SIZES), catalog_of(_NAMES[:ITEMS]))
    second = Recommender(Exported(export(learned)), store)
    assert items_of(second) == set(_NAMES[:ITEMS]) - {"i02"}
    assert second.stock.left_out == {"i04", *NEW}
    second.observe("u", "i01", START)
    assert items_of(second, exclude_seen=True) == set(_NAMES[:ITEMS]) - {"i01", "i02"}
    assert second.stock.put([Stated("i03", title="Three")]) == [False]
    with pytest.raises(InputError, match="1 of 1 items can't be put: 'x', of type str: the model learned its item"):
        second.stock.put([Stated("x", [1.0] * DIM)])
    # Its catalog has them, trained on: what the first was told of i04 is the first's alone.
    third = Recommender(Exported(export(shop(tmp_path / "third", dim=7))), store)
    row = np.array([4])
    assert not np.allclose(model_of(third.stock).compared(row), 1)
    np.testing.assert_array_equal(model_of(listened(first).stock).compared(row), np.ones((1, DIM)))
    assert items_of(third) == items_of(first) == set(_NAMES) - {"i02", "new-a"}


BAD: dict[str, tuple[Stated, str]] = {
    "size": (Stated("x", [1.0]), "of size 1, expected 5"),
    "NaN": (Stated("x", [float("nan")] * DIM), "not finite"),
    "too large": (Stated("x", [1e39] * DIM), "not finite"),
    "too large to be squared": (Stated("x", [1e8] * DIM), "so that its square is out of range"),
    "zero": (Stated("x", [0.0] * DIM), "zero"),
    "none": (Stated("x"), "new, and comes without a vector"),
    "words": (Stated("x", ["a"] * DIM), "no list of numbers"),  # type: ignore[list-item]
    "id": (Stated("a\x00", [1.0] * DIM), "without control characters"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_items_change_nothing(model: Exported, bad: str) -> None:
    item, message = BAD[bad]
    rec = Recommender(model, MemoryStates())
    with pytest.raises(InputError, match=message):
        rec.stock.put([*some_new(), item])
    assert items_of(listened(rec)) == set(_NAMES[:ITEMS])


def test_the_first_five_bad_items_are_named(model: Exported) -> None:
    items = [Stated(f"bad-{number}", [0.0] * DIM) for number in range(9)]
    with pytest.raises(InputError, match=r"9 of 9 items can't be put: 'bad-0'.*'bad-4', of type str: [^;]*$"):
        Stock(model, MemoryStates()).put(items)


def test_a_catalog_is_not_emptied_by_mistake(model: Exported) -> None:
    rec = Recommender(model, MemoryStates())
    half = _NAMES[: ITEMS // 2]
    rec.stock.withdraw(half)
    with pytest.raises(Shrinks, match=rf"leave {ITEMS // 2 - 1} of {ITEMS} items"):
        listened(rec).stock.withdraw([_NAMES[ITEMS // 2]])
    assert items_of(listened(rec)) == set(_NAMES[ITEMS // 2 : ITEMS])
    rec.stock.withdraw(_NAMES[:ITEMS], allow_shrink=True)
    assert items_of(listened(rec)) == set()
    rec.stock.restore(["i01"])
    assert items_of(listened(rec)) == {"i01"}


class _Failing(ExactIndex):
    fails = False

    def put(self, rows: Any, vectors: Any) -> None:
        if self.fails:
            raise StorageError("the server is away")
        super().put(rows, vectors)


def test_an_index_that_fails_is_told_later(model: Exported) -> None:
    with _Failing(compared(model)) as index:
        rec = Recommender(model, MemoryStates(), index=index)
        rec.observe("u", "i01", START)
        index.fails = True
        rec.stock.put(some_new())
        rec.stock.withdraw(["i05"])
        assert items_of(listened(rec)) == set(_NAMES[:ITEMS]) - {"i05"}
        index.fails = False
        assert items_of(listened(rec)) == set(_NAMES) - {"i05"}


def test_damaged_items_are_told_and_what_is_known_is_served(model: Exported, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStates()
    rec = Recommender(model, store)
    rec.stock.put(some_new())
    listened(rec).stock.put([Stated("new-a", [1.0] * DIM)])
    store.update([b"items/00000000"], lambda found: Update([(found[0] or b"")[:-1]]))
    assert items_of(listened(listened(rec))) == set(_NAMES)
    assert caplog.text.count("Restore the store from a copy") == 1
    with pytest.raises(ArtifactError, match="Restore the store"):
        Recommender(model, store)
