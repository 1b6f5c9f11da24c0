"""The generator: every event once, in order, with the right state, whatever the log and the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caches import User, batches_of, cache_of
from hiertcn.batching import SessionBatches
from hiertcn.models import LastItemsConfig, build
from hiertcn.ragged import SessionBatch

GAP, CATALOG, WINDOW = 10, 5, 60


@dataclass(frozen=True)
class Asked:
    """What a model is to be given where one event is asked for."""

    item: int
    before: tuple[int, ...]
    seen: float
    gap: float


def asked_events(users: list[User], part: str) -> dict[int, Asked]:
    """By place in the cache, worked out event by event."""
    out, place = {}, 0
    for _, items, times, parts in users:
        end = len(items) - [*reversed(parts), part].index(part)
        before: list[int] = []
        previous = latest = held_until = None  # times: of the event before, of the one read before, of the last fold
        fresh, held, gap, seen = False, False, 0.0, 0.0
        for event, (item, time, own) in enumerate(zip(items, times, parts, strict=True)):
            fresh |= previous is None or time - previous >= GAP
            previous = time
            if own != "train" if part == "train" else event >= end:
                continue
            if fresh:
                held_until = latest if held else held_until
                gap = 0.0 if held_until is None else time - held_until
                seen = time
                fresh = held = False
            latest = time
            known = item if item <= CATALOG else 0
            # What is outside the catalog is asked, but not learned.
            if own == part and (known or part != "train"):
                out[place + event] = Asked(known, tuple(before), seen, gap)
            if known:
                before.append(known)
                seen, held = time, True
        place += len(items)
    return out


@st.composite
def people(draw: st.DrawFn) -> list[User]:
    """Up to nine users of up to 25 events; rows 0, 6 and 7 are outside the catalog."""
    out: list[User] = []
    for number in range(draw(st.integers(1, 9))):
        events = draw(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0, 1, 3, 9, 10, 11, 50])), max_size=25))
        times = np.cumsum([1e6, *(wait for _, wait in events)])[1:].tolist()
        cuts = sorted(draw(st.tuples(st.integers(0, len(events)), st.integers(0, len(events)))))
        parts = ["train"] * cuts[0] + ["valid"] * (cuts[1] - cuts[0]) + ["test"] * (len(events) - cuts[1])
        out.append((number, [item for item, _ in events], times, parts))
    return out


def same(one: SessionBatch, other: SessionBatch) -> bool:
    return all(
        np.array_equal(np.asarray(getattr(one, f.name)), np.asarray(getattr(other, f.name)))
        for f in fields(SessionBatch)
        if f.name not in ("layout", "users")
    )


def read(batches: SessionBatches) -> Iterator[tuple[int, Asked]]:
    """(place, what the model was given) of every target of the rest of an epoch, states carried from batch to batch.

    The state is the user's last items, so a wrong reset, a wrong row or an event out of order shows in `before`.
    """
    model = build(LastItemsConfig(window=WINDOW), np.ones(CATALOG + 1, dtype=np.int64), seed=0)
    carried = model.zero_state(batches.rows)
    for batch in batches:
        queries, after = model(batch, batch.initial(carried))
        carried = batch.carry(carried, after)
        for place, item, query, seen, gap in zip(
            batch.events.tolist(),
            batch.targets.tolist(),
            queries[batch.positions].tolist(),
            batch.seen[batch.positions].tolist(),
            batch.gaps[batch.session[batch.positions]].tolist(),
            strict=True,
        ):
            yield place, Asked(item, tuple(row for row in query if row), seen, gap)


@settings(max_examples=100, deadline=None)
@given(
    users=people(),
    part=st.sampled_from(["train", "valid", "test"]),
    rows=st.integers(1, 6),
    sessions=st.integers(1, 4),
    chunk=st.integers(1, 6),
    shards=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_event_is_asked_once_with_all_that_came_before(
    users: list[User], part: str, rows: int, sessions: int, chunk: int, shards: int, shuffle: bool, seed: int
) -> None:
    expected = asked_events(users, part)
    with TemporaryDirectory() as folder:
        cache = cache_of(Path(folder) / "cache", users, GAP, CATALOG, shards=min(shards, len(users)))
        batches = batches_of(cache, part, rows=rows, sessions=sessions, chunk=chunk, shuffle=shuffle, seed=seed)
        assert batches.targets == len(expected)
        for epoch in range(2):
            assert batches.state_dict() == {"epoch": epoch, "batch": 0}
            found = list(read(batches))
            places = [place for place, _ in found]
            assert sorted(places) == sorted(expected)
            assert dict(found) == expected
            owner = np.repeat(np.arange(len(users)), [len(items) for _, items, _, _ in users])[places]
            for user in range(len(users)):
                assert (np.diff(np.array(places)[owner == user]) > 0).all()


@settings(max_examples=40, deadline=None)
@given(users=people(), rows=st.integers(1, 4), chunk=st.integers(1, 4), cut=st.integers(0, 12), seed=st.integers(0, 9))
def test_a_pass_goes_on_where_it_was_left(users: list[User], rows: int, chunk: int, cut: int, seed: int) -> None:
    with TemporaryDirectory() as folder:
        cache = cache_of(Path(folder) / "cache", users, GAP, CATALOG, shards=min(6, len(users)))

        def fresh() -> SessionBatches:
            return batches_of(cache, rows=rows, sessions=1, chunk=chunk, shuffle=True, seed=seed)

        whole, stopped, resumed = fresh(), fresh(), fresh()
        one, two = list(whole), list(whole)
        assert len(one) == len(stopped)
        for count, batch in enumerate(stopped):
            assert same(batch, one[count])
            if count == cut:
                break
        resumed.load_state_dict(stopped.state_dict())
        done = min(cut + 1, len(one))
        for batches in (stopped, resumed):
            if batches.epoch == 0:
                assert batches.batch == done
                rest = list(batches)
                assert len(rest) == len(one) - done
                assert all(same(a, b) for a, b in zip(rest, one[done:], strict=True))
            assert batches.epoch == 1
            assert all(same(a, b) for a, b in zip(batches, two, strict=True))


def many(users: int, seed: int = 0) -> list[User]:
    rng = np.random.default_rng(seed)
    out: list[User] = []
    for number in range(users):
        length = int(rng.integers(1, 40))
        times = np.cumsum(rng.choice([1, 5, 100], length)).tolist()
        out.append((number, rng.integers(1, CATALOG + 1, length).tolist(), times, "train"))
    return out


def events_of(batches: SessionBatches) -> list[int]:
    return [place for batch in batches for place in batch.events.tolist()]


def test_shuffling_is_anew_each_epoch_and_under_the_seed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", many(30), GAP, shards=3)
    one, again, other = (batches_of(cache, shuffle=True, seed=seed) for seed in (1, 1, 2))
    epochs = [events_of(one) for _ in range(3)]
    assert [events_of(again) for _ in range(3)] == epochs
    assert len({tuple(epoch) for epoch in [*epochs, events_of(other)]}) == 4
    still = batches_of(cache)
    assert events_of(still) == events_of(still)


def test_rows_are_even(tmp_path: Path) -> None:
    """The least loaded row is taken each time, so the longest is above the mean by a user at most."""
    cache = cache_of(tmp_path / "cache", many(50), GAP)
    alone = [len(batches_of(cache_of(tmp_path / "one", [user], GAP, CATALOG), rows=1, sessions=1)) for user in many(50)]
    for rows in (1, 4, 60):
        chunks = len(batches_of(cache, rows=rows, sessions=1))
        assert sum(alone) / rows <= chunks <= sum(alone) / rows + max(alone)
        for size in (1, 3, 100):
            batches = batches_of(cache, rows=rows, sessions=size)
            assert len(batches) == -(-chunks // size)
            assert all(batch.sessions <= rows * size for batch in batches)


def test_a_session_cut_between_batches_comes_with_all_of_its_beginning(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", [("a", [1, 2, 3, 4, 5, 1, 2], range(7), "train")], GAP)
    batches = list(batches_of(cache, rows=1, sessions=1, chunk=3))
    assert [batch.items.tolist() for batch in batches] == [[1, 2, 3], [1, 2, 3, 4, 5, 1], [1, 2, 3, 4, 5, 1, 2]]
    assert [batch.positions.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.finished.tolist() for batch in batches] == [[False], [False], [True]]
    assert [batch.carried.tolist() for batch in batches] == [[-1], [0], [0]]


def test_a_share_of_users_is_whole_users(tmp_path: Path) -> None:
    users = many(60)
    cache = cache_of(tmp_path / "cache", users, GAP, shards=2)
    owner = np.repeat(np.arange(60), [len(items) for _, items, _, _ in users])
    batches = batches_of(cache, users=0.5, seed=4)
    found = events_of(batches)
    some = set(owner[found].tolist())
    assert 15 < len(some) < 45
    assert sorted(found) == np.flatnonzero(np.isin(owner, list(some))).tolist()
    assert batches.targets == len(found)
    assert events_of(batches_of(cache, users=0.5, seed=4)) == found


@pytest.mark.parametrize("shards", [1, 2])
def test_a_part_may_be_empty_in_a_shard_or_in_all(tmp_path: Path, shards: int) -> None:
    users: list[User] = [("a", [1, 2], [0, 1], "train"), ("b", [2, 1], [0, 1], "test")]
    cache = cache_of(tmp_path / "cache", users, GAP, shards=shards)
    assert events_of(batches_of(cache, "train")) == [0, 1]
    assert events_of(batches_of(cache, "test")) == [2, 3]
    nothing = batches_of(cache, "valid")
    assert (len(nothing), nothing.targets, list(nothing)) == (0, 0, [])


def test_no_gradient_and_no_other_row_is_carried(tmp_path: Path) -> None:
    """Rows that hold nothing in a batch keep the state they had."""
    cache = cache_of(tmp_path / "cache", [("a", [1], [0], "train"), ("b", [2, 3], [0, 100], "train")], GAP)
    first, second = batches_of(cache, rows=2, sessions=1)
    carried = torch.arange(4.0).reshape(2, 2)
    assert first.rows.tolist() == [0, 1]
    assert second.rows.tolist() == [1]
    after = torch.full((1, 2), 9.0, requires_grad=True)
    got = second.carry(carried, after)
    assert got.tolist() == [[0, 1], [9, 9]]
    assert not got.requires_grad
    assert second.initial(carried).tolist() == [[2, 3]]
    assert first.initial(carried).tolist() == [[0, 0], [0, 0]]
