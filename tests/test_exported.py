"""An exported model says what the model says, knows no torch, and is refused where it is damaged."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exports import CONFIGS, HEARD, ITEMS, LONGEST, PEOPLE, assert_same, crowd_for, stirred, stream_of
from hiertcn.artifact import Run, write_run
from hiertcn.assortment import add_items, withdraw_items
from hiertcn.crowd import Crowd
from hiertcn.errors import ArtifactError, InputError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.manifest import write_manifest
from hiertcn.models import CONFIGS as MODELS
from hiertcn.models import HierTCNConfig, build
from hiertcn.models.hiertcn import HierTCN
from people import GAP, SIZES, catalog_of, run_of
from runs import relisted, restated

CATALOG = catalog_of([f"i{row:02}" for row in range(1, ITEMS + 1)])
Pair = tuple[HierTCN, Exported]


def saved(path: Path, config: HierTCNConfig, vectors: np.ndarray[Any, Any] | None = None) -> Run:
    """A run of stirred weights, with a crowd that has picked."""
    path.mkdir()
    table = None if vectors is None else path / "given.npy"
    if table is not None:
        np.save(table, vectors)
    model = build(config, CATALOG.train_events, 0, None if vectors is None else vectors)
    assert isinstance(model, HierTCN)
    stirred(model)
    rule = {"session_gap": float(GAP), "max_session_events": LONGEST, "validation": {}, "history": []}
    facts = {"cache": {"path": str(path), "fingerprint": "none"}, **rule}
    write_run(path, model, config, CATALOG, facts, table, crowd_for(model))
    return Run(path)


def pair_of(folder: Path, config: HierTCNConfig, vectors: np.ndarray[Any, Any] | None = None) -> Pair:
    run = saved(folder / "run", config, vectors)
    model = run.model
    assert isinstance(model, HierTCN)
    return model, Exported(export(run))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("exported"), CONFIGS[request.param])


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose exported folder has every kind of file."""
    config = HierTCNConfig(**SIZES, **HEARD, clock=True, ranking="l2", gap_decay="fixed")
    vectors = np.random.default_rng(0).normal(size=(ITEMS + 1, 5)).astype(np.float32)
    vectors[0] = 0
    config = config.model_copy(update={"vectors": "both"})
    return export(saved(tmp_path_factory.mktemp("heard") / "run", config, vectors))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(people=PEOPLE, seed=st.integers(0, 99))
def test_says_what_the_model_says(pair: Pair, people: Any, seed: int) -> None:
    assert_same(*pair, stream_of(people), seed)


@settings(max_examples=5, deadline=None)
@given(people=PEOPLE)
def test_several_people_at_once_are_each_alone(pair: Pair, people: Any) -> None:
    model, exported = pair
    crowd = crowd_for(model)

    def both(some: Any) -> tuple[np.ndarray, np.ndarray]:
        stream, begun = stream_of(some, "last"), exported.zero_state(len(some))
        return exported.encode(stream, begun, crowd), exported.fold(stream, begun)

    alone = [both([one]) for one in people]
    for found, expected in zip(both(people), map(np.concatenate, zip(*alone, strict=True)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("ranking", ["inner", "l2"])
@pytest.mark.parametrize("how", ["fixed", "tuned", "both"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_given_vectors(tmp_path: Path, how: str, ranking: str, dtype: type) -> None:
    vectors = np.random.default_rng(1).normal(size=(ITEMS + 1, 5)).astype(dtype)
    vectors[0] = 0
    config = HierTCNConfig.model_validate({**SIZES, **HEARD, "vectors": how, "ranking": ranking})
    model, exported = pair_of(tmp_path, config, vectors)
    people = [[(60, row % 7 + 1, []), (GAP, row, []), (1, 2, [])] for row in range(ITEMS)]
    assert_same(model, exported, stream_of(people))
    if how == "fixed":
        (table,) = exported.path.glob("compared-*.npy")
        assert table.stat().st_nlink > 1


@pytest.mark.parametrize("how", ["fixed", "tuned", "both"])
def test_items_that_were_added_are_exported_again(tmp_path: Path, how: str) -> None:
    vectors = np.random.default_rng(2).normal(size=(ITEMS + 1, 5)).astype(np.float32)
    vectors[0] = 0
    run = saved(tmp_path / "run", HierTCNConfig.model_validate({**SIZES, **HEARD, "vectors": how}), vectors)
    before = Exported(export(run))
    pl.DataFrame({"item_id": ["new"], "vector": [[1.0, 0, 2, 0, 3]]}).write_parquet(tmp_path / "new.parquet")
    assert add_items(run.path, tmp_path / "new.parquet") == 1
    grown = Run(run.path)
    after = Exported(export(grown))
    assert (after.digest, after.catalog.size) == (before.digest, ITEMS + 1)
    model = grown.model
    assert isinstance(model, HierTCN)
    assert_same(model, after, stream_of([[(9, ITEMS + 1, []), (GAP, ITEMS, []), (5, 1, [])]], items=ITEMS + 1))


def test_states_and_rules_are_those_of_the_run(heard: Path) -> None:
    exported, run = Exported(heard), Run(heard.parent)
    assert exported.catalog.fingerprint == run.catalog.fingerprint
    assert (exported.session_gap, exported.max_session_events) == (run.session_gap, run.max_session_events)
    ours, theirs = exported.crowd(), run.crowd()
    assert ours is not None
    assert theirs is not None
    for name, array in theirs.state().items():
        np.testing.assert_array_equal(ours.state()[name], array)
    assert exported.horizons == run.model.horizons


def test_a_model_that_hears_is_told_of_no_crowd(heard: Path) -> None:
    exported = Exported(heard)
    with pytest.raises(ValueError, match="crowd"):
        exported.encode(stream_of([[(1, 1, [])]]), exported.zero_state(1), None)


def test_withdrawn_items_are_those_of_the_run_when_it_was_exported(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", CONFIGS["plain"])
    folder = export(run)
    withdraw_items(run.path, ["i03"])
    assert not len(Exported(folder).withdrawn)
    assert export(run.path) == folder
    again = Exported(folder)
    assert again.withdrawn.tolist() == [3]
    assert again.source == Run(run.path).manifest["sha256"]


def test_no_torch_is_imported(heard: Path) -> None:
    code = (
        "import sys; from hiertcn.exported import Exported; import numpy as np\n"
        f"e = Exported({str(heard)!r}); e.crowd(); e.zero_state(2); assert e.catalog.size == {ITEMS}\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", ["gru", "moving_average", "popularity"])
def test_other_models_are_not_exported(tmp_path: Path, name: str) -> None:
    sizes = {} if name == "popularity" else {"dim": 8}
    run = run_of(tmp_path / "run", MODELS[name](**sizes), catalog_of("abcde"))
    with pytest.raises(InputError, match="only a HierTCN"):
        export(run)
    assert not (run.path / "online").exists()


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", CONFIGS["plain"])
    before = sorted(path.name for path in run.path.iterdir())
    for folder in (run.path, tmp_path):
        with pytest.raises(InputError, match="no exported model"):
            export(run, folder)
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", CONFIGS["plain"])
    with torch.no_grad():
        next(run.model.head.parameters())[0, 0] = torch.nan  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match=r"head\.weight"):
        export(run)
    assert not (run.path / "online").exists()


@pytest.mark.parametrize("part", ["encode", "fold"])
def test_an_export_that_says_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    run = saved(tmp_path / "run", CONFIGS["plain"])
    right = getattr(Exported, part)
    monkeypatch.setattr(Exported, part, lambda *given: right(*given) + np.float32(1e-2))
    with pytest.raises(ArtifactError, match="differs from the model"):
        export(run)
    assert not (run.path / "online").exists()


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        Exported(folder).crowd()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["manifest", "fold", "encode", "read", "compared", "bias", "catalog", "crowd"])
@pytest.mark.parametrize(
    "damage", [flipped, lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink], ids=["flip", "cut", "gone"]
)
def test_a_damaged_file_is_refused(heard: Path, tmp_path: Path, part: str, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "online"
    shutil.copytree(heard, folder)
    (path,) = [path for path in folder.iterdir() if path.name.startswith(part)]
    damage(path)
    assert path.name in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"reads__dim": 9},
        {"reads__query": 12},
        {"reads__repeats": 3},
        {"reads__field": 4},
        {"reads__clock": 0},
        {"reads__trends": [0.5]},
        {"reads__state": 13},
        {"session_gap": -1.0},
        {"withdrawn": [ITEMS + 1]},
        {"fold__file": "../manifest.json"},
        {"encode": None},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(heard: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "online"
    shutil.copytree(heard, folder)
    restated(folder, **changes)
    refused(folder)


def test_a_table_of_no_numbers_and_a_graph_that_is_none_are_refused(heard: Path, tmp_path: Path) -> None:
    for part, data in (("fold", b"no graph"), ("encode", (heard / "fold.onnx").read_bytes()), ("read", None)):
        folder = tmp_path / part
        shutil.copytree(heard, folder)
        (path,) = [path for path in folder.iterdir() if path.name.startswith(part)]
        if data is None:
            np.lib.format.open_memmap(path, mode="r+")[2, 1] = np.nan
        else:
            path.write_bytes(data)
        relisted(folder, part, path.name)
        assert "Export" in refused(folder)


def test_what_is_planted_is_not_opened(heard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "online"
    shutil.copytree(heard, folder)
    (path,) = folder.glob("read-*.npy")
    path.rename(tmp_path / "elsewhere.npy")
    path.symlink_to(tmp_path / "elsewhere.npy")
    assert "not a plain file" in refused(folder)
    path.unlink()
    np.save(path, np.array([{"a": 1}] * (ITEMS + 1), dtype=object), allow_pickle=True)
    relisted(folder, "read", path.name)
    assert "no table" in refused(folder)


def test_a_model_directory_is_no_exported_model(heard: Path, tmp_path: Path) -> None:
    assert "hiertcn export RUN" in refused(tmp_path)
    facts = json.loads((heard.parent / "manifest.json").read_text())
    write_manifest(tmp_path / "manifest.json", {key: facts[key] for key in facts if key != "sha256"})
    assert "does not say what it has to" in refused(tmp_path)


def test_nobody_and_nothing_asked(heard: Path) -> None:
    exported = Exported(heard)
    stream = stream_of([[(1, 1, []), (GAP, 2, [])]])
    none = np.zeros(0, dtype=np.int64)
    unasked = replace(stream, positions=none, targets=none, events=none)
    begun = exported.zero_state(1)
    assert len(exported.encode(unasked, begun, Crowd(exported.horizons, ITEMS))) == 0
    np.testing.assert_array_equal(exported.fold(unasked, begun), exported.fold(stream, begun))


def test_models_of_one_catalog_hold_it_once_and_let_it_go(tmp_path: Path) -> None:
    first, again = (
        Exported(export(run_of(tmp_path / name, CONFIGS[name], catalog_of("abcde")))) for name in ("plain", "full")
    )
    other = Exported(export(run_of(tmp_path / "gru", CONFIGS["gru"], catalog_of("abcdf"))))
    assert first.catalog is again.catalog
    assert other.catalog is not first.catalog
    assert [model.catalog.row("f") for model in (first, again, other)] == [0, 0, 5]
    held = weakref.ref(first.catalog)
    del first, again
    gc.collect()
    assert held() is None


def test_a_catalog_that_is_held_is_still_checked(tmp_path: Path) -> None:
    folders = [export(run_of(tmp_path / name, CONFIGS["plain"], catalog_of("abcde"))) for name in "ab"]
    held = Exported(folders[0])
    path = folders[1] / "catalog.arrow"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"catalog\.arrow"):
        Exported(folders[1])
    assert held.catalog.row("a") == 1
