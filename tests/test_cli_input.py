"""What the command line says of bad input: one paragraph and an exit code, never a traceback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from commands import Ask, said
from hiertcn.models import HierTCNConfig
from hiertcn.preparation import prepare
from hiertcn.settings import TrainConfig
from hiertcn.synth import SimulationConfig, simulate
from hiertcn.training import train


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    return Ask(monkeypatch, capfd)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated log of 40 users, its cache and a run."""
    place = tmp_path_factory.mktemp("input")
    simulate(SimulationConfig(users=40, sessions=5)).write_parquet(place / "log.parquet")
    cache = prepare(place / "log.parquet", place / "cache")
    train(cache, HierTCNConfig(dim=4, units=4, channels=(4,)), TrainConfig(epochs=1), place / "run")
    return place


BAD: dict[str, tuple[int, list[str]]] = {
    # What is asked (P is the place, T an empty folder) → exit code, what is said.
    "simulate --out T/a.parquet --users 0 --noise 2": (2, ["users = 0", "noise = 2.0"]),
    "simulate --out P/log.parquet/a": (5, ["Could not write"]),
    "prepare T/nothing.csv --out T/c": (2, ["No log at"]),
    "prepare P/log.parquet --out T/c --split lst": (2, ["did you mean 'last'?"]),
    "prepare P/log.parquet --out T/c --fractions 1,2": (2, ["fractions", "1.0, 2.0"]),
    "prepare P/log.parquet --out T/c --split time --cuts 5": (2, ["cuts"]),
    "prepare P/log.parquet --out T/c --item-column itm": (2, ["did you mean 'item_id'?"]),
    "prepare P/log.parquet --out T/c --min-item-events 999": (2, ["0 events"]),
    "prepare P/log.parquet --out P/run": (2, ["is there and is no cache"]),
    "inspect T/nothing": (3, ["is not a cache", "hiertcn prepare"]),
    "train T/nothing --out T/r": (3, ["is not a cache"]),
    "train P/run --out T/r": (3, ["is a model directory, not a cache"]),
    "train P/cache --out T/r --preset smal": (2, ["did you mean 'small'?"]),
    "train P/cache --out T/r --epochs 0 --rows -1": (2, ["epochs", "rows", "greater"]),
    "train P/cache --out T/r --config T/nothing.toml": (2, ["can't be read as TOML"]),
    "train P/cache --out T/r --resume": (2, ["no checkpoint"]),
    "evaluate P/cache": (3, ["is a prepared log, not a model directory"]),
    "evaluate T/nothing": (3, ["is not a model directory", "hiertcn train"]),
    "evaluate P/run --split tests": (2, ["'tests' is not a part"]),
    "evaluate P/run --model popularty": (2, ["did you mean 'popularity'?"]),
    "evaluate P/run --cache T/nothing": (3, ["is not a cache"]),
    "evaluate P/run --json P/cache": (5, ["Could not write"]),
    "recommend P/run": (2, ["--user ID", "--history FILE"]),
    "recommend P/run --history P/log.parquet": (2, ["40 users", "one person"]),
    "recommend P/run --user u00007 -k 501": (2, ["from 1 to 500"]),
    "demo --out T/d --log T/nothing.csv": (2, ["No log at"]),
    "demo --out T/d --epochs 0": (2, ["epochs"]),
    "demo --out P/log.parquet/d": (5, ["Could not write"]),
    "demo --out T/d --log P/log.parquet --item-clumn x": (2, ["--item-clumn"]),
}


@pytest.mark.parametrize("asked", BAD)
def test_bad_input_is_refused_in_one_paragraph(ask: Ask, tmp_path: Path, place: Path, asked: str) -> None:
    code, parts = BAD[asked]
    paths = [re.sub("^T", str(tmp_path), re.sub("^P", str(place), word)) for word in asked.split()]
    said(ask(*paths), code, *parts)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "asked",
    ["", "prepair x", "prepare x", "inspect", "inspect x --jsn", "train x --out y --epochs many", "recommend r -k x"],
)
def test_misused_commands_say_how_they_are_used(ask: Ask, asked: str) -> None:
    answer = ask(*asked.split())
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert "Usage: hiertcn" in answer.err + answer.out


@pytest.mark.parametrize("verb", ["inspect", "evaluate", "recommend", "train"])
def test_a_damaged_file_is_refused(ask: Ask, tmp_path: Path, place: Path, verb: str) -> None:
    """A flipped byte anywhere ends with exit code 3, the file named."""
    for name in ("cache", "run"):
        shutil.copytree(place / name, tmp_path / name)
    of = tmp_path / ("run" if verb in ("evaluate", "recommend") else "cache")
    names = ["manifest.json", "catalog.arrow"] + ([] if of.name == "cache" else ["model-*.safetensors"])
    asked = {
        "inspect": ("inspect", of, "--verify"),
        "evaluate": ("evaluate", of, "--cache", place / "cache"),
        "recommend": ("recommend", of, "--user", "u00007"),
        "train": ("train", of, "--out", tmp_path / "new", "--epochs", 1),
    }[verb]
    for name in names:
        (file,) = of.glob(name)
        whole = file.read_bytes()
        file.write_bytes(whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:])
        said(ask(*asked), 3, str(of))
        file.unlink()
        said(ask(*asked), 3, str(of))
        file.write_bytes(whole)
