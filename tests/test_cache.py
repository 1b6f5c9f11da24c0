"""The cache on disk: whole or not there, mapped not copied, and never trusted when damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from hiertcn.cache import Cache, Manifest, write_cache
from hiertcn.catalog import Catalog
from hiertcn.errors import ArtifactError
from hiertcn.files import ASIDE
from hiertcn.preparation import prepare
from hiertcn.sessions import Sessions


@pytest.fixture
def cache(tiny_log: pl.DataFrame, tmp_path: Path) -> Cache:
    return prepare(tiny_log, tmp_path / "cache", events_per_shard=150)


def some_sessions(users: int = 3) -> Sessions:
    """Each user has one session of one event and one of two."""
    events = np.arange(users * 3)
    return Sessions(
        items=(events % 2 + 1).astype(np.int32),
        times=events * 10**6,
        parts=(events % 3).astype(np.uint8),
        session_offsets=np.sort(np.concatenate([np.arange(users + 1) * 3, np.arange(users) * 3 + 1])),
        user_offsets=np.arange(users + 1) * 2,
    )


def some_catalog() -> Catalog:
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", None], "link": [None, None], "train_events": [3, 1]})
    return Catalog(items.cast({"link": pl.String}), 1)


def test_round_trip(tmp_path: Path) -> None:
    sessions, ids = some_sessions(), pl.Series(["u", "v", "w"])
    shards = [(ids[:2], sessions.users(0, 2)), (ids[2:], sessions.users(2, 3))]
    written = write_cache(tmp_path / "cache", Manifest(1800.0, 1000, {"by": "last"}, "s"), some_catalog(), shards)
    cache = Cache(tmp_path / "cache")
    cache.verify()
    assert cache.manifest == written.manifest
    assert (cache.manifest.users, cache.manifest.sessions, cache.manifest.events) == (3, 6, 9)
    assert (cache.manifest.items, cache.manifest.outside_items) == (1, 1)
    assert cache.manifest.parts["train"] == {"events": 3, "users": 3, "outside_events": 1}
    assert cache.catalog.items.equals(some_catalog().items)
    for number, (user_ids, expected) in enumerate(shards):
        found = cache.shard(number)
        assert found.user_ids.to_list() == user_ids.to_list()
        for name in ("items", "times", "parts", "session_offsets", "user_offsets"):
            np.testing.assert_array_equal(getattr(found.sessions, name), getattr(expected, name))
            assert getattr(found.sessions, name).dtype == getattr(expected, name).dtype
    assert cache.find("w") == (1, 0)
    assert cache.find("x") is None


def test_shards_are_mapped_not_copied(cache: Cache) -> None:
    before = pa.total_allocated_bytes()
    sessions = cache.shard(0).sessions
    assert pa.total_allocated_bytes() == before
    for values in (sessions.items, sessions.times, sessions.parts):
        assert not values.flags.owndata
        assert not values.flags.writeable


def test_polars_reads_a_shard(cache: Cache) -> None:
    table = pl.read_ipc(cache.path / "shard-00000.arrow")
    assert table.columns == ["user_id", "session_lengths", "items", "times", "parts"]
    assert table["session_lengths"].list.sum().to_list() == table["items"].list.len().to_list()
    assert table["items"].explode().to_list() == cache.shard(0).sessions.items.tolist()


def test_users_are_sorted_and_found_in_every_shard(cache: Cache, tiny_log: pl.DataFrame) -> None:
    assert len(cache) > 2
    ids = pl.concat([cache.shard(number).user_ids for number in range(len(cache))])
    assert ids.to_list() == sorted(tiny_log["user_id"].unique())
    for user in ids:
        shard, place = cache.find(user) or (-1, -1)
        assert cache.shard(shard).user_ids[place] == user


def test_a_flipped_byte_is_found(cache: Cache) -> None:
    for name in ("shard-00001.arrow", "catalog.arrow"):
        path = cache.path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            Cache(cache.path).verify()
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    Cache(cache.path).verify()


def test_a_truncated_or_missing_file_is_refused_at_opening(cache: Cache) -> None:
    path = cache.path / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=path.name):
        Cache(cache.path)
    path.unlink()
    with pytest.raises(ArtifactError, match=path.name):
        Cache(cache.path)
    (cache.path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not a cache"):
        Cache(cache.path)


def test_another_format_is_refused(cache: Cache) -> None:
    path = cache.path / "manifest.json"
    manifest = json.loads(path.read_text())
    for change in ({"format": 2}, {"format": None}, {"newer": 1}, {"shards": [{"file": "x"}]}, {"shards": 3}):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(ArtifactError):
            Cache(cache.path)
    outside = manifest["shards"][0] | {"file": "../catalog.arrow"}
    path.write_text(json.dumps(manifest | {"shards": [outside]}))
    with pytest.raises(ArtifactError, match="outside the cache"):
        Cache(cache.path)


def test_a_cache_can_be_moved(cache: Cache, tmp_path: Path) -> None:
    shutil.move(cache.path, tmp_path / "elsewhere")
    Cache(tmp_path / "elsewhere").verify()


def test_an_error_half_way_leaves_what_was_there(cache: Cache, tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[pl.Series, Sessions]]:
        yield pl.Series(["u", "v", "w"]), some_sessions()
        raise RuntimeError

    before = cache.manifest
    for out in (cache.path, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            write_cache(out, Manifest(1800.0, 1000, {}, "s"), some_catalog(), broken())
    assert Cache(cache.path).manifest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


KILLED = """
import os, signal, sys
from pathlib import Path
from test_cache import Manifest, pl, some_catalog, some_sessions, write_cache

def shards():
    yield pl.Series(["u", "v", "w"]), some_sessions()
    os.kill(os.getpid(), signal.SIGKILL)

write_cache(Path(sys.argv[1]), Manifest(1800.0, 1000, {}, "s"), some_catalog(), shards())
"""


def test_a_kill_half_way_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cache")], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "cache").exists()
    left = list(tmp_path.iterdir())
    assert all(path.name.endswith(ASIDE) for path in left)
    for path in left:
        with pytest.raises(ArtifactError):
            Cache(path)
