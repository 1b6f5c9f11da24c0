"""`hiertcn verify`: three ways agree on a log with gaps around the rule, and a planted difference is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from exports import HEARD
from hiertcn.artifact import Run
from hiertcn.cli import app
from hiertcn.columns import Columns
from hiertcn.errors import InputError
from hiertcn.events import read_events
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import Recommender
from hiertcn.tables import Layout
from hiertcn.verifying import Verification, verify
from people import GAP, SIZES, START
from runs import relisted, restated
from test_exported import saved


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few people: items of the catalog and one outside it, pauses around the rule, more than fit in a session."""
    random = np.random.default_rng(3)
    pauses = random.choice([1, 50, GAP - 1, GAP, GAP + 1, 200_000], 90, p=[0.4, 0.3, 0.1, 0.05, 0.05, 0.1])
    frame = pl.DataFrame(
        {
            "user": [f"u{number // 23}" for number in range(90)],
            "item": [f"i{row:02}" for row in random.integers(1, 22, 90)],
            "ts": START + np.cumsum(pauses),
        }
    )
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    frame.write_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = saved(tmp_path_factory.mktemp("run") / "run", HierTCNConfig(**SIZES, **HEARD, clock=True, gap_decay="fixed"))
    export(run)
    return run


def verified(run: Run, folder: Path, log: Path, users: int | None = None) -> Verification:
    return verify(run, Exported(folder), read_events(log, Columns(), Layout()), users)


def test_all_ways_agree(run: Run, log: Path) -> None:
    found = verified(run, run.path / "online", log)
    assert found.agrees
    assert (found.users, found.events, found.boundaries) == (4, 90, 0)
    assert 0 < found.exported < 1e-5
    assert verified(run, run.path / "online", log, users=2).users == 2


@pytest.mark.parametrize("part", ["read", "compared"])
def test_other_weights_are_found(run: Run, log: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "online"
    shutil.copytree(run.path / "online", folder)
    (table,) = {Exported(folder).path / name for name in (path.name for path in folder.glob("compared-*.npy"))}
    changed = np.lib.format.open_memmap(table, mode="r+")
    changed[1:] *= 1.001
    changed.flush()
    relisted(folder, part, table.name)
    relisted(folder, {"read": "compared", "compared": "read"}[part], table.name)
    done = CliRunner().invoke(app, ["verify", str(run.path), str(log), "--exported", str(folder), "--users", "2"])
    assert done.exit_code == 1, done.output
    assert "NOT alike" in done.output
    assert CliRunner().invoke(app, ["verify", str(run.path), str(log), "--users", "2"]).exit_code == 0


def test_another_session_rule_is_found(run: Run, log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "online"
    shutil.copytree(run.path / "online", folder)
    restated(folder, session_gap=GAP + 1.0)
    found = verified(run, folder, log)
    assert found.boundaries
    assert not found.agrees


def test_an_online_path_that_drifts_is_found(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Recommender.observe
    monkeypatch.setattr(Recommender, "observe", lambda self, *given: right(self, *given[:1], "i01", *given[2:]))
    found = verified(run, run.path / "online", log, users=1)
    assert found.online > 1e-5
    assert found.exported < 1e-5
    assert not found.agrees


def test_an_export_of_what_the_run_was_is_refused(run: Run, log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    restated(folder, withdrawn=[2])
    with pytest.raises(InputError, match="again"):
        verified(Run(folder), folder / "online", log)


def test_what_is_no_number_is_not_alike() -> None:
    assert Verification().agrees
    assert not Verification(online=float("inf")).agrees


def test_export_by_the_command_line(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run.path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert Exported(tmp_path / "out").digest == Exported(run.path / "online").digest
