"""Model directories made to harm, with every digest right, are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from hiertcn import checkpoint
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError
from runs import opened, refused, relisted, restated, run_of, small_cache, weights_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(cache, tmp_path_factory.mktemp("trained") / "run", epochs=1).path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


HOSTILE: list[dict[str, Any]] = [
    *({key: None} for key in ("model", "catalog", "weights", "cache", "session_gap", "validation", "history")),
    *(
        {key: wrong}
        for key in ("model", "catalog", "weights", "cache", "session_gap")
        for wrong in ([], "x", {}, 1e999)
    ),
    {"model__name": None},
    {"model__name": 3},
    {"model__name": "x" * 10_000},
    {"model__name": "popularity"},
    {"model__name": "__init__"},
    {"model__dim": "8"},
    {"model__dim": 0},
    {"model__dim": -1},
    {"model__dim": 7},
    {"model__dim": 2**40},
    {"model__dim": 10**9},
    {"model__channels": [10**9, 10**9]},
    {"model__channels": []},
    {"model__channels": 3},
    {"model__unknown": 1},
    {"model__" + "k" * 10_000: 1},
    {"model__self": 1},
    {"model__head": "softmax"},
    {"catalog__size": -1},
    {"catalog__size": 10**9},
    {"catalog__size": 3},
    {"catalog__size": "3"},
    {"catalog__size": True},
    {"catalog__fingerprint": "0"},
    {"catalog__file": None},
    {"catalog__bytes": -1},
    {"weights__file": "../run/manifest.json"},
    {"weights__file": "/etc/passwd"},
    {"weights__file": ".."},
    {"weights__file": "."},
    {"weights__file": ""},
    {"weights__file": "a\0b"},
    {"weights__file": "a" * 1000},
    {"weights__file": "manifest.json"},
    {"weights__file": "tensorboard"},
    {"weights__file": ["x"]},
    {"weights__sha256": 3},
    {"weights__bytes": 1.5},
    {"weights__bytes": 2**70},
    {"session_gap": -1.0},
    {"session_gap": "1800"},
    {"session_gap": float("nan")},
    {"session_gap": float("inf")},
    {"validation": {"mrr": "high"}},
    {"history": [{"mrr": []}]},
    {"cache__path": 3},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: str(changes)[:40])
def test_a_manifest_made_to_harm_is_refused(changes: dict[str, Any], folder: Path) -> None:
    restated(folder, **changes)
    refused(folder)


def test_the_rest_of_a_manifest_is_free(folder: Path) -> None:
    restated(folder, note="mine", model__name="hiertcn")
    assert opened(folder).manifest["note"] == "mine"


def raw_safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        raw_safetensors({}, size=2**63),
        raw_safetensors({}, size=2**64 - 1),
        raw_safetensors({}, size=10**6),
        raw_safetensors(b"{"),
        raw_safetensors(b"[" * 1000),
        raw_safetensors([]),
        raw_safetensors({}),
        raw_safetensors({"items.weight": entry([2**40], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2**40, 2**40], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 2**40)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        raw_safetensors({"items.weight": entry([2], 8, 0)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([-2], 0, 8)}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([2], 0, 8, "F128")}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([8], 0, 8, "F8_E4M3")}, b"\0" * 8),
        raw_safetensors({"items.weight": entry([16], 0, 8, "F4")}, b"\0" * 8),
        raw_safetensors({"items.weight": {}}, b"\0" * 8),
    ],
)
def test_weights_made_to_harm_are_refused(data: bytes, folder: Path) -> None:
    (folder / "weights").write_bytes(data)
    relisted(folder, "weights", "weights")
    refused(folder)


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {name: torch.from_numpy(values.copy()) for name, values in weights_of(folder).items()}
        change(tensors)
        save_file(tensors, folder / "other.safetensors")
        relisted(folder, "weights", "other.safetensors")

    return apply


WEIGHTS = {
    "one too few": lambda t: t.pop("head.weight"),
    "one too many": lambda t: t.update(extra=torch.zeros(1)),
    "another name": lambda t: t.update({"head.Weight": t.pop("head.weight")}),
    "another shape": lambda t: t.update({"head.weight": t["head.weight"][:, :-1].contiguous()}),
    "another order": lambda t: t.update({"tcn.blocks.0.weight": t["tcn.blocks.0.weight"].transpose(0, 1).contiguous()}),
    "another type": lambda t: t.update({"head.bias": t["head.bias"].double()}),
    "half the precision": lambda t: t.update({"head.bias": t["head.bias"].half()}),
    "no vector of one item": lambda t: t.update({"items.weight": t["items.weight"][:-1].contiguous()}),
    "NaN": lambda t: t["head.bias"].__setitem__(0, float("nan")),
    "infinite": lambda t: t["items.weight"].__setitem__((3, 1), -float("inf")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_model_are_refused(name: str, folder: Path) -> None:
    changed_weights(WEIGHTS[name])(folder)
    message = refused(folder)
    assert ("NaN or infinite" if name in ("NaN", "infinite") else "not those of the model") in message


def test_weights_that_are_only_others_are_taken(folder: Path) -> None:
    changed_weights(lambda t: t["head.bias"].zero_())(folder)
    assert not opened(folder).model.state_dict()["head.bias"].any()


def changed_catalog(folder: Path, items: pl.DataFrame) -> None:
    items.write_ipc(folder / "other.arrow")
    relisted(folder, "catalog", "other.arrow")


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items.drop("item_id"),
        lambda items: items.drop("title"),
        lambda items: items.with_columns(pl.col("train_events").cast(pl.String)),
        lambda items: items.with_columns(pl.col("train_events").cast(pl.Float64)),
        lambda items: items.with_columns(pl.lit(None, pl.Int64).alias("train_events")),
        lambda items: items.with_columns(pl.lit(1.5).alias("item_id")),
        lambda items: items.with_columns(pl.lit("same").alias("item_id")),
        lambda items: items.with_columns(pl.lit(None, pl.String).alias("item_id")),
        lambda items: items.with_columns(pl.lit(3).alias("title")),
        lambda items: items.with_columns(pl.lit([1]).alias("link")),
        lambda items: items.reverse(),
        lambda items: items[:-1],
        lambda items: items[:0],
    ],
)
def test_a_catalog_made_to_harm_is_refused(
    change: Callable[[pl.DataFrame], pl.DataFrame], cache: Cache, folder: Path
) -> None:
    changed_catalog(folder, change(cache.catalog.items))
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("carried"),
        lambda tensors: tensors.update(carried=torch.zeros(1, 1)),
        lambda tensors: tensors.update(loss=torch.zeros(3)),
        lambda tensors: tensors.pop("model.head.weight"),
        lambda tensors: tensors["model.head.weight"].fill_(float("nan")),
        lambda tensors: tensors.update({"optimizer.0.0.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer.0.999.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer.0.x": torch.zeros(1)}),
    ],
)
def test_a_checkpoint_made_to_harm_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], cache: Cache, folder: Path
) -> None:
    tensors, facts = checkpoint.load(folder)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    identity = json.loads((folder / "checkpoint.json").read_text())["identity"]
    checkpoint.save(folder, tensors, identity, facts)
    with pytest.raises(ArtifactError):
        run_of(cache, folder, resume=True)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"step": -1},
        {"step": "3"},
        {"batches": {"epoch": 0}},
        {"batches": {"epoch": -1, "batch": 0}},
        {"history": 3},
        {"history": [{"mrr": "x"}]},
    ],
)
def test_facts_of_a_checkpoint_made_to_harm_are_refused(facts: dict[str, Any], cache: Cache, folder: Path) -> None:
    tensors, right = checkpoint.load(folder)
    identity = json.loads((folder / "checkpoint.json").read_text())["identity"]
    checkpoint.save(folder, tensors, identity, right | facts if facts else {})
    with pytest.raises(ArtifactError, match=r"checkpoint\.json"):
        run_of(cache, folder, resume=True)


FUZZ = """
import json, random, shutil, sys
from pathlib import Path
from hiertcn.artifact import Run
from hiertcn.errors import ArtifactError
from runs import relisted

folder, listed, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
data, found = (folder / name).read_bytes(), 0
for seed in range(int(sys.argv[4])):
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        # Mostly in what describes the data.
        place = rng.randrange(min(len(data), 1500)) if rng.random() < 0.7 else rng.randrange(len(data))
        place = place if rng.random() < 0.5 else len(data) - 1 - place
        changed[place] = rng.choice([changed[place] ^ (1 << rng.randrange(8)), 0, 255])
    (folder / "fuzzed").write_bytes(changed)
    relisted(folder, listed, "fuzzed")
    try:
        run = Run(folder)
        run.catalog.ids.to_list(), run.catalog.title(1), run.model
    except ArtifactError:
        found += 1
print(found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("listed", ["weights", "catalog"])
def test_bytes_changed_under_a_right_digest_end_no_process(listed: str, folder: Path) -> None:
    name = json.loads((folder / "manifest.json").read_text())[listed]["file"]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(folder), listed, name, "1000"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100
