"""Vectors that items come with: read, checked, kept by memory map, and what models make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from caches import batches_of
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.evaluation import evaluate
from hiertcn.inspection import inspection
from hiertcn.models import (
    GRUConfig,
    HierTCNConfig,
    HRNNConfig,
    ModelConfig,
    MovingAverageConfig,
    SASRecConfig,
    TCNConfig,
    VARConfig,
)
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.settings import TrainConfig
from hiertcn.training import train
from logs import BEGIN

ITEMS, DIM = 12, 6


def a_log(events: int = 300, items: int = ITEMS - 2) -> pl.DataFrame:
    """Events on all items but the last two of the list."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 15, events),
            "item": [f"i{k:02}" for k in rng.integers(0, items, events)],
            "ts": BEGIN + rng.integers(0, 10**6, events),
        }
    )


def some_vectors(seed: int = 1, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ITEMS, DIM)).astype(dtype)


def listed(vectors: np.ndarray, order: np.ndarray | None = None, kind: Any = None) -> pl.DataFrame:
    order = np.arange(len(vectors)) if order is None else order
    values = pl.Series("embedding", vectors[order].tolist(), kind or pl.List(pl.Float32))
    return pl.DataFrame({"item_id": [f"i{k:02}" for k in order]}).with_columns(values)


def prepared(place: Path, items: pl.DataFrame, **options: Any) -> Cache:
    place.mkdir(exist_ok=True)
    items.write_parquet(place / "items.parquet", row_group_size=5)
    return prepare(a_log(), place / "cache", catalog=place / "items.parquet", overwrite=True, **options)


def assert_kept(cache: Cache, vectors: np.ndarray) -> None:
    assert cache.vectors is not None
    assert isinstance(cache.vectors, np.memmap)
    rows = [int(name[1:]) for name in cache.catalog.ids]
    np.testing.assert_array_equal(cache.vectors[1:], vectors[rows])
    assert not cache.vectors[0].any()
    cache.verify()


@pytest.mark.parametrize("kind", [pl.List(pl.Float32), pl.Array(pl.Float32, DIM), pl.List(pl.Float64)])
def test_a_column_of_vectors_is_kept(tmp_path: Path, kind: Any) -> None:
    order = np.random.default_rng(3).permutation(ITEMS)
    cache = prepared(tmp_path, listed(some_vectors(), order, kind))
    assert_kept(cache, some_vectors())
    assert cache.manifest.items == ITEMS
    assert inspection(cache)["vectors"] == {"dim": DIM, "dtype": "float32"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_of_vectors_is_kept(tmp_path: Path, suffix: str, dtype: Any) -> None:
    vectors, file = some_vectors(dtype=dtype), tmp_path / f"v{suffix}"
    np.save(file, vectors) if suffix == ".npy" else save_file({"v": vectors}, file)
    cache = prepared(tmp_path, listed(some_vectors()).select("item_id"), vectors=file)
    assert_kept(cache, vectors.astype(np.float16 if dtype is np.float16 else np.float32))


def spoiled(line: int, value: Any) -> pl.DataFrame:
    items = listed(some_vectors())
    rows = items["embedding"].to_list()
    rows[line] = value
    return items.with_columns(pl.Series("embedding", rows, pl.List(pl.Float32)))


BAD = {
    "missing": (spoiled(7, None), r"1 missing or of another size, such as of \['i07'\]"),
    "too short": (spoiled(7, [1.0]), r"1 missing or of another size, such as of \['i07'\]"),
    "NaN": (spoiled(7, [float("nan")] * DIM), r"1 not finite, such as of \['i07'\]"),
    "a null inside": (spoiled(7, [None, *[1.0] * (DIM - 1)]), r"1 not finite, such as of \['i07'\]"),
    "infinite": (spoiled(3, [float("inf")] * DIM), r"1 not finite, such as of \['i03'\]"),
    "zero": (spoiled(0, [0.0] * DIM), r"1 zero, such as of \['i00'\]"),
    "first is missing": (spoiled(0, None), r"1 missing or of another size, such as of \['i00'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_vectors_are_refused_with_their_items(tmp_path: Path, case: str) -> None:
    items, message = BAD[case]
    with pytest.raises(InputError, match=message):
        prepared(tmp_path, items)
    assert not (tmp_path / "cache").exists()


def test_vectors_that_do_not_fit_the_list_are_refused(tmp_path: Path) -> None:
    names = listed(some_vectors()).select("item_id")
    np.save(tmp_path / "few.npy", some_vectors()[:5])
    np.save(tmp_path / "flat.npy", some_vectors()[0])
    np.save(tmp_path / "whole.npy", np.ones((ITEMS, 2), dtype=np.int64))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * ITEMS, dtype=object))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "few.npy").read_bytes()[:90])
    for name, message in {
        "few.npy": "holds 5 vectors and the item list 12 items",
        "flat.npy": r"float32 of shape \(6,\)",
        "whole.npy": "are int64",
        "objects.npy": "can't be read",
        "cut.npy": "can't be read",
        "none.npy": "is not there",
        "items.parquet": "of another kind",
    }.items():
        with pytest.raises(InputError, match=message):
            prepared(tmp_path, names, vectors=tmp_path / name)
    with pytest.raises(InputError, match="without a catalog"):
        prepare(a_log(), tmp_path / "cache", vectors=tmp_path / "few.npy")
    with pytest.raises(InputError, match=r"no column 'vec' of vectors.*'embedding'"):
        prepared(tmp_path, listed(some_vectors()), vector_column="vec")
    with pytest.raises(InputError, match="unknown_items is 'train'"):
        prepared(tmp_path, listed(some_vectors()), unknown_items="train")


def test_items_without_a_vector_stay_in_the_log_outside_the_catalog(tmp_path: Path) -> None:
    cache = prepared(tmp_path, listed(some_vectors())[:5])
    assert (cache.manifest.items, cache.manifest.events) == (5, a_log().height)
    outside = sum(part["outside_events"] for part in cache.manifest.parts.values())
    assert outside == a_log().filter(pl.col("item") >= "i05").height > 0
    whole = prepared(tmp_path / "whole", listed(some_vectors()))
    assert cache.manifest.split == whole.manifest.split
    asked = [int(row) for batch in batches_of(cache) for row in batch.targets]
    assert sorted(set(asked)) == [1, 2, 3, 4, 5]
    assert len(asked) == cache.manifest.parts["train"]["events"] - cache.manifest.parts["train"]["outside_events"]
    dropped = prepared(tmp_path / "dropped", listed(some_vectors())[:5], unknown_items="drop")
    assert dropped.manifest.events == a_log().height - outside
    with pytest.raises(InputError, match="No train event is on one of the 2 items"):
        prepared(tmp_path / "other", pl.DataFrame({"item_id": ["x", "y"], "vector": [[1.0, 2.0]] * 2}))
    with pytest.raises(InputError, match="not in the catalog given"):
        prepared(tmp_path, listed(some_vectors())[:5], unknown_items="error")


CONFIGS: dict[str, ModelConfig] = {
    f"{config.name} {how}": config(**{**sizes, "vectors": how})
    for config, sizes in (
        (HierTCNConfig, {"dim": 5, "units": 4, "channels": (4,)}),
        (HRNNConfig, {"dim": 5, "units": 4}),
        (GRUConfig, {"dim": 5, "units": 4}),
        (TCNConfig, {"dim": 5, "channels": (4, 3), "kernel": 2}),
        (SASRecConfig, {"dim": 5, "window": 3}),
        (VARConfig, {"dim": 5, "window": 3}),
        (MovingAverageConfig, {"dim": 5, "decay": "gap"}),
    )
    for how in ("fixed", "tuned", "both")
    if (config, how) != (MovingAverageConfig, "fixed")
}
SHORT = TrainConfig(epochs=1, rows=4, learning_rate=0.01, device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_models_with_given_vectors_are_trained_kept_and_asked(tmp_path: Path, name: str) -> None:
    config, cache = CONFIGS[name], prepared(tmp_path, listed(some_vectors()))
    trained = train(cache, config, SHORT, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert evaluate(run, cache).table == evaluate(trained, cache).table
    held = run.model.items.whole()  # type: ignore[union-attr]
    assert held.shape == (ITEMS + 1, DIM + 5 if config.vectors == "both" else DIM)  # type: ignore[union-attr]
    moved = not torch.equal(held[:, :DIM], torch.from_numpy(np.asarray(cache.vectors)))
    assert moved is (config.vectors == "tuned")  # type: ignore[union-attr]
    with Recommender.load(run) as rec:
        rec.observe("x", "i03", BEGIN)
        assert {r.item for r in rec.recommend("x", ITEMS)} == set(cache.catalog.ids)


@pytest.mark.parametrize(
    ("config", "with_vectors", "how"),
    [
        (HierTCNConfig(dim=5, units=4, channels=(4,)), True, "fixed"),
        (HierTCNConfig(dim=5, units=4, channels=(4,)), False, "learned"),
        (HierTCNConfig(dim=5, units=4, channels=(4,), vectors="learned"), True, "learned"),
        (HierTCNConfig(dim=5, units=4, channels=(4,), head="softmax"), True, "learned"),
        (GRUConfig(dim=5, units=4), True, "fixed"),
    ],
)
def test_vectors_are_fixed_where_there_are_some_unless_said_otherwise(
    tmp_path: Path, config: ModelConfig, with_vectors: bool, how: str
) -> None:
    cache = prepared(tmp_path, listed(some_vectors())) if with_vectors else prepare(a_log(), tmp_path / "cache")
    run = train(cache, config, SHORT, tmp_path / "run")
    assert Run(run.path).manifest["model"]["vectors"] == how
    assert (run.vectors is not None) is (how == "fixed")


@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (HierTCNConfig(head="softmax"), "hinge"),
        (HierTCNConfig(head="softmax"), "l2"),
        (HierTCNConfig(ranking="l2"), "bpr"),
        (GRUConfig(ranking="l2"), "hinge_logsigmoid"),
    ],
)
def test_a_loss_of_another_order_than_the_ranking_is_refused(tmp_path: Path, config: ModelConfig, loss: Any) -> None:
    cache = prepare(a_log(), tmp_path / "cache")
    with pytest.raises(InputError, match=r"embedding|unit = true"):
        train(cache, config, TrainConfig(loss=loss), tmp_path / "run")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        prepared(tmp_path, listed(some_vectors()))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("config", [HierTCNConfig(vectors="fixed"), MovingAverageConfig(vectors="both")])
def test_a_catalog_without_vectors_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    cache = prepare(a_log(), tmp_path / "cache")
    with pytest.raises(InputError, match="the catalog holds none"):
        train(cache, config, SHORT, tmp_path / "run")


def test_what_only_averages_fixed_vectors_is_evaluated_without_training(tmp_path: Path) -> None:
    cache = prepared(tmp_path, listed(some_vectors()))
    with pytest.raises(InputError, match="nothing to train"):
        train(cache, MovingAverageConfig(vectors="fixed"), SHORT, tmp_path / "ma")
    run = train(cache, CONFIGS["hiertcn fixed"], SHORT, tmp_path / "run")
    found = evaluate(run, cache, model="moving_average", top=1)
    # The query of somebody with one event is that event's vector.
    assert 1 <= found.ranks.ranks.min() <= ITEMS


def scores_of(run: Run, items: list[str]) -> dict[Any, float]:
    with Recommender.load(run) as rec:
        found = rec.recommend_history(items, [BEGIN + 60 * k for k in range(len(items))], 500)
    return {r.item: r.score for r in found}


@pytest.mark.parametrize("ranking", ["inner", "l2"])
@pytest.mark.parametrize("how", ["fixed", "both"])
def test_an_item_never_trained_on_scores_as_its_twin(tmp_path: Path, how: str, ranking: str) -> None:
    """i10 and i11 have no event; given the vectors of two others, all that tells them apart is what was learned."""
    vectors = some_vectors()
    vectors[10] = vectors[11] = vectors[4]
    cache = prepared(tmp_path, listed(vectors))
    config = HierTCNConfig(dim=5, units=4, channels=(4,), vectors=how, ranking=ranking)  # type: ignore[arg-type]
    found = scores_of(train(cache, config, SHORT, tmp_path / "run"), ["i01", "i04", "i02"])
    assert found["i10"] == found["i11"]
    assert (found["i10"] == pytest.approx(found["i04"], abs=1e-6)) is (how == "fixed")


def test_turned_vectors_rank_the_same_untrained(tmp_path: Path) -> None:
    """A rotation of all vectors is undone by one of the maps that read and compare with them."""
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0].astype(np.float32)
    one = prepared(tmp_path / "one", listed(some_vectors()))
    other = prepared(tmp_path / "other", listed(some_vectors() @ turn))
    runs = [train(cache, CONFIGS["hiertcn fixed"], SHORT, cache.path.parent / "run") for cache in (one, other)]
    models = [run.model for run in runs]
    turned = torch.from_numpy(turn)
    weights = models[0].state_dict()
    weights["items.project.weight"] = weights["items.project.weight"] @ turned
    weights["head.weight"] = turned.T @ weights["head.weight"]
    weights["head.bias"] = turned.T @ weights["head.bias"]
    models[1].load_state_dict(weights)
    items = ["i01", "i04", "i02"]
    first, second = (scores_of(run, items) for run in runs)
    assert first == pytest.approx(second, abs=1e-5)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    cache = prepared(tmp_path, listed(some_vectors()))
    run = train(cache, CONFIGS["hiertcn fixed"], SHORT, tmp_path / "run")
    (table,) = run.path.glob("vectors-*.npy")
    data = bytearray(table.read_bytes())
    table.unlink()
    table.write_bytes(data[:-4])
    with pytest.raises(ArtifactError, match="bytes"):
        _ = Run(run.path).model
    data[-1] ^= 1
    table.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256"):
        _ = Run(run.path).model
    (cache.path / "vectors.npy").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"vectors\.npy"):
        Cache(cache.path).verify()


_READS_A_FEW = """
import sys
from pathlib import Path
import numpy as np, torch
from hiertcn.models.items import GivenItems
from hiertcn.vectors import open_vectors

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile")) * 1024

table = open_vectors(Path(sys.argv[1]), int(sys.argv[2]))
before = resident()
items = GivenItems(len(table) - 1, 16, "fixed", torch.from_numpy(table), True)
rows = torch.from_numpy(np.random.default_rng(0).integers(1, len(table), 300))
items(rows), items.compared(rows)
print(resident() - before, table.nbytes)
"""


def test_of_a_large_table_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    rows = 400_001
    table = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float32, shape=(rows, 128))
    table[1::1000] = 1
    del table
    out = subprocess.run(
        [sys.executable, "-c", _READS_A_FEW, str(tmp_path / "v.npy"), str(rows)],
        capture_output=True,
        text=True,
        check=True,
    )
    read, size = map(int, out.stdout.split())
    assert 0 < read < size / 4
