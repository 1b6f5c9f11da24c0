"""Items added to a trained model and withdrawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from hiertcn.artifact import Run
from hiertcn.assortment import add_items, withdraw_items
from hiertcn.cli import app
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.evaluation import evaluate
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import Recommender
from hiertcn.settings import TrainConfig
from hiertcn.training import train
from logs import BEGIN
from test_vectors import DIM, ITEMS, SHORT, listed, prepared, scores_of, some_vectors


def trained(tmp_path: Path, how: str = "fixed", ranking: str = "inner") -> Path:
    """A model over the first ten of the twelve items."""
    cache = prepared(tmp_path, listed(some_vectors())[: ITEMS - 2])
    config = HierTCNConfig(dim=5, units=4, channels=(4,), vectors=how, ranking=ranking)  # type: ignore[arg-type]
    return train(cache, config, SHORT, tmp_path / "run").path


def written(tmp_path: Path, frame: pl.DataFrame) -> Path:
    frame.write_parquet(tmp_path / "new.parquet")
    return tmp_path / "new.parquet"


@pytest.mark.parametrize("ranking", ["inner", "l2"])
@pytest.mark.parametrize("how", ["fixed", "tuned", "both"])
def test_items_are_added_without_training(tmp_path: Path, how: str, ranking: str) -> None:
    """i10 is given the vector of i04, i11 one of its own; scores of the others stay as they were."""
    run, vectors = trained(tmp_path, how, ranking), some_vectors()
    vectors[10] = vectors[4]
    before = scores_of(Run(run), ["i01", "i04"])
    table = evaluate(run).table
    assert add_items(run, written(tmp_path, listed(vectors)[10:])) == 2
    after = Run(run)
    assert after.catalog.ids.to_list()[-2:] == ["i10", "i11"]
    np.testing.assert_array_equal(after.vectors[-2:], vectors[10:])  # type: ignore[index]
    found = scores_of(after, ["i01", "i04"])
    assert {item: found[item] for item in before} == pytest.approx(before, abs=1e-6)
    if how == "fixed":
        assert found["i10"] == pytest.approx(found["i04"], abs=1e-6)
    # The log is evaluated as before, but for the new items being ranked, too.
    assert evaluate(after).table.targets == table.targets
    files = sorted(path.name.split("-")[0] for path in run.iterdir() if path.suffix in (".npy", ".arrow"))
    assert files == ["catalog", "vectors"]
    # More may follow, and states of users stay.
    assert add_items(run, written(tmp_path, listed(vectors, np.array([3])).with_columns(item_id=pl.lit("i99")))) == 1
    assert Run(run).catalog.size == ITEMS + 1


@pytest.mark.parametrize("how", ["fixed", "tuned", "both"])
def test_stored_states_outlive_an_addition(tmp_path: Path, how: str) -> None:
    run, store = trained(tmp_path, how), f"sqlite:///{tmp_path}/states.db"
    with Recommender.load(run, store) as rec:
        rec.observe("u", "i01", BEGIN)
        before = rec.query("u")
    add_items(run, written(tmp_path, listed(some_vectors())[10:]))
    with Recommender.load(run, store) as rec:
        np.testing.assert_allclose(rec.query("u"), before, atol=1e-6)
        rec.observe("u", "i11", BEGIN + 60)
        assert "i11" not in [r.item for r in rec.recommend("u", 50, exclude_seen=True)]


def test_items_that_only_the_test_part_knew_can_be_added(tmp_path: Path) -> None:
    run = trained(tmp_path)
    catalog = Run(run).catalog
    outside = catalog.items["item_id"][catalog.size :].to_list()
    add_items(run, written(tmp_path, listed(some_vectors())[10:]))
    after = Run(run).catalog
    assert after.items["item_id"].n_unique() == after.items.height
    assert after.items["item_id"][after.size :].to_list() == [item for item in outside if item not in ("i10", "i11")]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (listed(some_vectors())[9:], r"1 item\(s\) of .* are in the catalog already, such as \['i09'\]"),
        (listed(some_vectors())[10:].select("item_id"), "holds no vectors"),
        (listed(some_vectors()[:, :3])[10:], f"of size 3; those of .* have {DIM}"),
        (listed(np.zeros((ITEMS, DIM), np.float32))[10:], r"2 zero, such as of \['i10', 'i11'\]"),
    ],
)
def test_bad_additions_leave_the_model_as_it_was(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    run = trained(tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=message):
        add_items(run, written(tmp_path, frame))
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_model_of_learned_vectors_takes_no_new_items(tmp_path: Path) -> None:
    cache = prepared(tmp_path, listed(some_vectors()))
    run = train(cache, HierTCNConfig(dim=5, units=4, channels=(4,), vectors="learned"), SHORT, tmp_path / "run")
    with pytest.raises(InputError, match="has learned its item vectors"):
        add_items(run.path, written(tmp_path, listed(some_vectors())[10:]))


def test_a_full_disk_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    before = scores_of(Run(run), ["i01"])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hiertcn.artifact.write_manifest", full)
    with pytest.raises((OSError, StorageError)):
        add_items(run, written(tmp_path, listed(some_vectors())[10:]))
    monkeypatch.undo()
    assert scores_of(Run(run), ["i01"]) == before


def test_withdrawn_items_are_not_recommended(tmp_path: Path) -> None:
    run = trained(tmp_path)
    assert withdraw_items(run, ["i01", "i02"]) == 2
    assert withdraw_items(run, ["i02", "i03"]) == 3
    found = scores_of(Run(run), ["i01", "i04"])
    assert set(found) == {f"i{k:02}" for k in range(10)} - {"i01", "i02", "i03"}
    with Recommender.load(run) as rec:
        assert not {r.item for r in rec.recommend("nobody", 50)} & {"i01", "i02", "i03"}
    with pytest.raises(InputError, match=r"1 item\(s\) are not in the catalog.*'x'"):
        withdraw_items(run, ["i01", "x"])


def test_the_command_line_adds_and_withdraws(tmp_path: Path) -> None:
    run, new = trained(tmp_path), written(tmp_path, listed(some_vectors())[10:])
    ask = CliRunner().invoke
    assert ask(app, ["catalog", "add", str(run), str(new)]).exit_code == 0
    assert ask(app, ["catalog", "withdraw", str(run), "i10", "i00"]).exit_code == 0
    assert set(scores_of(Run(run), ["i01"])) == {f"i{k:02}" for k in range(ITEMS)} - {"i00", "i10"}


def test_training_does_not_undo_what_was_changed(tmp_path: Path) -> None:
    run = trained(tmp_path)
    add_items(run, written(tmp_path, listed(some_vectors())[10:]))
    config = HierTCNConfig(dim=5, units=4, channels=(4,), vectors="fixed")
    longer = TrainConfig(**{**SHORT.model_dump(), "epochs": 8, "patience": 8})
    with pytest.raises(InputError, match="would undo that"):
        train(tmp_path / "cache", config, longer, run, resume=True)
    assert Run(run).catalog.size == ITEMS


@pytest.mark.parametrize("ask", [lambda run: add_items(run, "new.parquet"), lambda run: withdraw_items(run, ["a"])])
def test_what_is_no_model_directory_is_left_as_it_is(tmp_path: Path, ask: Any) -> None:
    cache = prepared(tmp_path, listed(some_vectors()))
    before = sorted(path.name for path in cache.path.iterdir())
    for place in (cache.path, tmp_path / "nothing"):
        with pytest.raises(ArtifactError):
            ask(place)
    assert sorted(path.name for path in cache.path.iterdir()) == before
    assert not (tmp_path / "nothing").exists()
