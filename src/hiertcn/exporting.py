"""A trained HierTCN written for serving without torch: two graphs, the tables they go with, and a manifest.

OUT/fold.onnx, encode.onnx   see graphs.py
OUT/read-….npy, compared-….npy, bias-….npy   a row for each item: what is read of it; what queries are compared with
OUT/given-….npy   of a model that reads given vectors: the matrix through which it does, for items that come later
OUT/catalog.arrow, crowd-….safetensors   as in the model directory
"""

from __future__ import annotations

__all__ = ["export"]

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from hiertcn.artifact import Run
from hiertcn.catalogfile import write_catalog
from hiertcn.crowd import Crowd
from hiertcn.errors import ArtifactError, InputError
from hiertcn.exported import FOLDER, Exported
from hiertcn.files import ASIDE, write_folder
from hiertcn.graphs import Encode, Fold, field_of
from hiertcn.manifest import checked, linked, listed, write_manifest
from hiertcn.models.hiertcn import GAP_BUCKETS, HierTCN
from hiertcn.models.items import GivenItems
from hiertcn.sessions import PARTS, SECOND, Sessions, sessionize
from hiertcn.streams import Stream
from hiertcn.wholes import whole_batch

_BLOCK = 1 << 15
"""In a run: where it is exported to."""
_NAME, _OPSET = "manifest.json", 17
# Of the scale of what is compared.
_ALIKE = 1e-4


def export(run: Run | str | Path, out: str | Path | None = None) -> Path:
    """Write the model of `run` for ONNX Runtime to the folder `out` (default: RUN/online, replaced if it is there),
    whole or not at all; the folder.

    Raises InputError for a model other than HierTCN and for a folder that holds something else, ArtifactError for a run
    that is damaged or whose export does not give what it gives, StorageError when the disk refuses.
    """
    run = run if isinstance(run, Run) else Run(run)
    model, folder = run.model, run.path / FOLDER if out is None else Path(out)
    if not isinstance(model, HierTCN):
        raise InputError(
            f"{run.path} is a {run.name}; only a HierTCN is exported. Train one by `hiertcn train CACHE --preset "
            "strong`, or serve this one with torch."
        )
    _check(model, run, folder)
    with write_folder(folder) as aside, torch.no_grad():
        manifest = _written(run, model, aside)
        write_manifest(aside / _NAME, manifest)
        _compare(run, model, Exported(aside))
    return folder


def _check(model: HierTCN, run: Run, folder: Path) -> None:
    holds = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if holds and not (folder / "fold.onnx").exists():
        raise InputError(
            f"{folder} is there and is no exported model; expected a folder that is new, or one to replace. Choose "
            "another --out."
        )
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ArtifactError(f"{run.path}: the weights {', '.join(broken[:3])} hold what is no number. Train it again.")


def _written(run: Run, model: HierTCN, folder: Path) -> dict[str, Any]:
    """Fill the folder; what its manifest says."""
    config, crowd = model.config, run.manifest.get("crowd")
    _write_graph(folder / "fold.onnx", Fold(model), *_fold_inputs(model), ["after"])
    encode = Encode(model)
    out = ["queries", "boosts"] if config.boosts else ["queries"]
    _write_graph(folder / "encode.onnx", encode, *_encode_inputs(model, encode.inputs), out)
    compared = _compared(run, model, folder)
    learned = config.head == "embedding" and not isinstance(model.items, GivenItems)
    read = compared if learned else _write_table(folder, "read", config.dim, run.catalog.size, model.items)
    return {
        "reads": {
            **{"state": model.long_size, "dim": config.dim, "query": model.query_size, "repeats": config.repeats},
            **{"aggregate": config.aggregate, "field": field_of(model), "decay": config.gap_decay != "none"},
            **{"impressions": config.impressions, "clock": GAP_BUCKETS if config.clock else 0},
            **{"trends": list(config.trends), "follows": list(config.follows)},
        },
        **{key: run.manifest[key] for key in ("model", "trained", "session_gap", "max_session_events", "withdrawn")},
        "source": run.manifest["sha256"],
        "catalog": write_catalog(folder, "catalog.arrow", run.catalog),
        **{name: listed(folder / f"{name}.onnx") for name in ("fold", "encode")},
        "read": read,
        "compared": compared,
        "bias": _bias(run, model, folder),
        "given": _given(model, folder),
        "crowd": None if crowd is None else linked(checked(run.path, crowd), folder, "crowd", ".safetensors"),
    }


def _compared(run: Run, model: HierTCN, folder: Path) -> dict[str, Any]:
    """What queries are compared with: the given table itself where that is what it is."""
    if model.config.head == "embedding" and isinstance(model.items, GivenItems) and model.items.how == "fixed":
        return linked(checked(run.path, run.manifest["vectors"]), folder, "compared")
    return _write_table(folder, "compared", model.query_size, run.catalog.size, lambda rows: model.lookup(rows)[0])


def _bias(run: Run, model: HierTCN, folder: Path) -> dict[str, Any] | None:
    if model.config.head == "embedding" and model.config.ranking == "inner":
        return None

    def column(rows: Tensor) -> Tensor:
        offsets = model.lookup(rows)[1]
        assert offsets is not None
        return offsets.unsqueeze(1)

    return _write_table(folder, "bias", 1, run.catalog.size, column)


def _given(model: HierTCN, folder: Path) -> dict[str, Any] | None:
    """What makes of the vector that an item comes with what the model has of it."""
    items = model.items
    if not isinstance(items, GivenItems) or items.project is None:
        return None
    weight, size = items.project.weight, items.given.shape[1]
    stated = _write_table(folder, "given", size, len(weight) - 1, lambda rows: weight[rows])
    return {**stated, "size": size, "half": items.given.dtype == torch.float16}


def _write_table(folder: Path, stem: str, size: int, items: int, block: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A table float32 [items + 1, size] of what `block` gives of rows, some rows in memory at a time."""
    path = folder / f"{stem}{ASIDE}"
    table = open_memmap(path, mode="w+", dtype=np.float32, shape=(items + 1, size))
    for begin in range(0, items + 1, _BLOCK):
        rows = torch.arange(begin, min(begin + _BLOCK, items + 1))
        table[begin : begin + len(rows)] = block(rows).float().numpy()
    table.flush()
    del table
    stated = linked(path, folder, stem)
    path.unlink()
    return stated


Shaped = tuple[list[str], list[Tensor], dict[str, dict[int, str]]]


def _fold_inputs(model: HierTCN) -> Shaped:
    names = ["session", "state", *(["gap"] if model.config.gap_decay != "none" else [])]
    sizes = {"session": (2, model.config.dim), "state": (2, model.long_size), "gap": (2,)}
    return names, [torch.zeros(sizes[name]) for name in names], {name: {0: "users"} for name in [*names, "after"]}


def _encode_inputs(model: HierTCN, names: list[str]) -> Shaped:
    config = model.config
    length, columns = field_of(model) or 3, len(config.trends) + len(config.follows)
    window = (2, length)
    given = {
        **dict.fromkeys(("items", "skipped"), torch.zeros(*window, config.dim)),
        **{"inside": torch.ones(window), "state": torch.zeros(2, model.long_size), "gap": torch.zeros(2)},
        **dict.fromkeys(("hour", "pause"), torch.zeros(window, dtype=torch.int64)),
        **{"crowd": torch.zeros(2, columns, 64), "step": torch.full((2,), length - 1)},
    }
    changing = {0: "asked"} if field_of(model) else {0: "asked", 1: "length"}
    windows = ("items", "skipped", "inside", "hour", "pause")
    axes = {name: changing if name in windows else {0: "asked"} for name in [*names, "queries", "boosts"]}
    return names, [given[name] for name in names], axes


def _write_graph(
    path: Path,
    module: nn.Module,
    names: list[str],
    given: list[Tensor],
    axes: dict[str, dict[int, str]],
    out: list[str],
) -> None:
    with warnings.catch_warnings():
        # The exporter by tracing takes a twentieth of the time of the one by torch.export, needs no package beside
        # torch, and gives as right a graph: whether it does is tried below, with each export.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(given),
            str(path),
            input_names=names,
            output_names=out,
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def _compare(run: Run, model: HierTCN, exported: Exported) -> None:
    """Raise ArtifactError unless both say the same of some made-up people."""
    items, crowd = np.random.default_rng(0), _made_up_crowd(model, run.catalog.size)
    longest = min(run.max_session_events, 2 * (field_of(model) or 10))
    stream = _made_up(items, run, longest)
    users = len(stream.user_offsets) - 1
    batch = whole_batch(stream, crowd)
    expected, expected_after = model(batch, model.zero_state(users))
    begun = exported.zero_state(users)
    found, after = exported.encode(stream, begun, crowd), exported.fold(stream, begun)
    pairs = [(found, expected[batch.positions].numpy()), (after, expected_after.numpy())]
    rows = np.tile(np.arange(1, min(run.catalog.size, 500) + 1), (len(found), 1))
    scores = model.score_rows(expected[batch.positions], torch.from_numpy(rows)).numpy()
    pairs.append((exported.score_rows(found, rows), scores))
    for ours, theirs in pairs:
        apart = float(np.abs(ours - theirs).max(initial=0)) / max(1.0, float(np.abs(theirs).max(initial=0)))
        if not apart <= _ALIKE:
            raise ArtifactError(
                f"{run.path}: what was exported differs from the model by {apart:.1e} of its scale, more than "
                f"{_ALIKE}. Nothing was written; serve the model with torch, and report this with the "
                "versions of torch and onnxruntime."
            )


def _made_up_crowd(model: HierTCN, items: int) -> Crowd | None:
    if not any(model.horizons):
        return None
    random = np.random.default_rng(1)
    rows = random.integers(1, items + 1, (2, 1000))
    return Crowd.of(model.horizons, items, rows[0], rows[1], 1.7e9 + random.uniform(0, 1e5, 1000))


def _made_up(random: np.random.Generator, run: Run, longest: int) -> Stream:
    """Of a few people with several sessions, asked at every event of the last two days."""
    offsets = np.cumsum([0, *random.integers(2, 3 * longest + 3, 4)])
    pauses = random.choice([20, 300, run.session_gap, 90_000], offsets[-1], p=[0.5, 0.4, 0.05, 0.05])
    times = (1_700_000_000 * SECOND + np.cumsum(pauses * SECOND)).astype(np.int64)
    sessions = sessionize(offsets, times, run.session_gap, run.max_session_events)
    items = random.integers(0, run.catalog.size + 1, offsets[-1]).astype(np.int32)
    parts = np.full(offsets[-1], PARTS.index("test"), dtype=np.uint8)
    shown_offsets = np.arange(offsets[-1] + 1) * 2
    shown = random.integers(1, run.catalog.size + 1, shown_offsets[-1]).astype(np.int32)
    whole = Sessions(items, times, parts, sessions, np.searchsorted(sessions, offsets), shown, shown_offsets)
    return Stream.of(whole, np.arange(run.catalog.size + 1), "test", run.session_gap, run.max_session_events)
