"""PinSage: vectors of items from what is known of them and from the items near them (Ying et al., KDD 2018).

An item is read by a learned vector and, where there are any, by its features: a vector it came with, or its title.
Graph convolutions add those of its neighbourhood. An item that training never saw is read by its features alone, or
where there are none by random numbers in place of the learned vector, always the same for its id (ours, after Sato et
al., 2021): two such items come out near one another if they are picked near the same items. So new items get vectors
without training.

Legend: n items, B items asked for, S items read for them, E edges, T items of a neighbourhood, F features, D size of a
vector, H hidden units, P pairs, K negatives.
"""

from __future__ import annotations

__all__ = ["PinSage", "PinSageConfig", "check_place", "load_pinsage", "train_pinsage"]

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing

from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.catalogfile import ListedCatalog, read_catalog, write_catalog
from hiertcn.config import Config, Count, Dropout, Positive
from hiertcn.embedding import pairs
from hiertcn.errors import InputError
from hiertcn.features import ItemFeatures
from hiertcn.files import refusals
from hiertcn.manifest import Listed, read_manifest, write_manifest
from hiertcn.neighbourhoods import Baskets, Neighbourhoods, baskets_of, walked
from hiertcn.tensors import drop_others, read_tensors, write_tensors

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_NAME = "pinsage.json"
_BLOCK = 1 << 12


class PinSageConfig(Config):
    """dim:       size of a vector                  hidden, layers: units of a convolution, convolutions
    window:    pairs to bring together are picked so near in a session
    near:      items of a neighbourhood          walks, walk_steps: see `neighbourhoods.walked`
    users:     walks lead over all that a user picked, not over sessions alone
    margin:    of the max-margin loss            batch, steps: pairs of a step, steps of training
    negatives: drawn for a step, shared by its pairs
    hard:      more of each pair, out of the `further` items that are most visited after the neighbourhood; none at
               first, all at the end
    unknown:   the share of items that a step reads as if they were new
    """

    dim: Count = 128
    hidden: Count = 128
    layers: Count = 2
    window: Count = 5
    near: Count = 10
    walks: Count = 100
    walk_steps: Count = 3
    users: bool = False
    margin: Positive = 0.05
    batch: Count = 512
    steps: Count = 400
    negatives: Count = 500
    further: Count = 50
    hard: Annotated[int, Field(ge=0, le=1000)] = 20
    unknown: Dropout = 0.5
    learning_rate: Positive = 2e-3


class _Convolution(MessagePassing):  # type: ignore[misc]
    """relu(W [h; Σ weight · relu(Q h')]) over the neighbourhood, of length 1 (Ying et al., 2018, algorithm 1)."""

    def __init__(self, size: int) -> None:
        super().__init__(aggr="add")
        self.near = nn.Linear(size, size)
        self.both = nn.Linear(2 * size, size)

    def forward(self, values: Tensor, targets: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        """[B, H] from `values` [S, H]; targets: int64 [B], places in them; edges: int64 [2, E], place → target."""
        read = F.relu(self.near(values))
        near = self.propagate(edges, x=read, weights=weights, size=(len(values), len(targets)))
        return F.normalize(F.relu(self.both(torch.cat([values[targets], near], dim=1))), dim=1)

    def message(self, x_j: Tensor, weights: Tensor) -> Tensor:
        return x_j * weights.unsqueeze(1)


class _Nodes:
    """What is read of item rows 1…n. known: int64 [n + 1], the row of the learned vector, 0 of an item read as new."""

    def __init__(self, ids: pl.Series, found: Neighbourhoods, known: Ints, features: ItemFeatures) -> None:
        self.near, self.weights, self.further = found.near, found.weights, found.further
        self.known, self.features = known, features
        self._ids = ids

    def hashed(self, rows: Ints, size: int) -> Tensor:
        """float32 [B, H]: random numbers that are always the same for the id of an item that is new and has no
        features; zero for all others."""
        out = np.zeros((len(rows), size), dtype=np.float32)
        for at in np.flatnonzero((self.known[rows] == 0) & ~self.features.has[rows]).tolist():
            seed = int.from_bytes(hashlib.blake2b(str(self._ids[int(rows[at]) - 1]).encode(), digest_size=8).digest())
            out[at] = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
        return torch.from_numpy(out)


class PinSage(nn.Module):
    """Vectors of items, of length 1. `catalog`: the items it has learned vectors of."""

    def __init__(self, catalog: Catalog, kind: str, features: int, config: PinSageConfig) -> None:
        super().__init__()
        self.catalog, self.kind, self.config = catalog, kind, config
        size = config.hidden
        self.learned = nn.Embedding(catalog.size + 1, size)
        nn.init.normal_(self.learned.weight, std=size**-0.5)
        self.features = nn.Linear(features, size, bias=False) if features else None
        if self.features is not None:
            nn.init.normal_(self.features.weight, std=size**-0.5)
        self.layers = nn.ModuleList(_Convolution(size) for _ in range(config.layers))
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.dim, bias=False))

    def forward(self, asked: Ints, nodes: _Nodes) -> Tensor:
        """[B, D], of item rows `asked` [B], each once, ascending."""
        levels = [asked]
        for _ in self.layers:
            near = nodes.near[levels[-1]]
            levels.append(np.union1d(levels[-1], near[near > 0]))
        values = self._read(levels[-1], nodes)
        for layer, read, targets in zip(self.layers, levels[:0:-1], levels[-2::-1], strict=True):
            near = nodes.near[targets]
            there = near > 0
            if self.training:
                # An item that was never picked has no neighbourhood.
                hidden = nodes.features.has[targets] & (torch.rand(len(near)) < self.config.unknown).numpy()
                there &= ~hidden[:, None]
            edges = np.stack([np.searchsorted(read, near[there]), np.nonzero(there)[0]])
            places, weights = np.searchsorted(read, targets), nodes.weights[targets][there]
            values = layer(values, torch.from_numpy(places), torch.from_numpy(edges), torch.from_numpy(weights))
        return F.normalize(self.head(values), dim=1)

    def _read(self, rows: Ints, nodes: _Nodes) -> Tensor:
        """[S, H] of item rows `rows` [S]."""
        known = torch.from_numpy(nodes.known[rows])
        if self.training:
            known = known * (torch.rand(len(known)) >= self.config.unknown)
            bare = torch.from_numpy(~nodes.features.has[rows]).unsqueeze(1)
            strange = torch.randn(len(known), self.config.hidden) * bare
        else:
            strange = nodes.hashed(rows, self.config.hidden)
        strange *= self.config.hidden**-0.5
        values: Tensor = torch.where((known > 0).unsqueeze(1), self.learned(known), strange)
        return values if self.features is None else values + self.features(nodes.features.read(rows))

    def nodes(self, cache: Cache, graph: Baskets, seed: int, further: int = 0) -> _Nodes:
        """All items of a log, in the rows of its cache, with the neighbourhoods that `graph` gives them.

        Raises InputError for a log whose items have not the features that this was trained on.
        """
        config, items, features = self.config, cache.catalog.items, ItemFeatures(cache)
        if (features.kind, features.size) != (self.kind, 0 if self.features is None else self.features.in_features):
            raise InputError(
                f"The items of the log have features of size {features.size} ({features.kind}), and PinSage was "
                f"trained on others ({self.kind}). Prepare the log with a --catalog of the same kind: vectors, titles "
                "or none."
            )
        found = walked(graph, config.near, further, config.walks, config.walk_steps, seed)
        known = np.append(0, self.catalog.rows(items["item_id"])).astype(np.int64)
        # One that was never picked has a learned vector that nothing was learned of.
        known[self.catalog.train_events[known] == 0] = 0
        return _Nodes(items["item_id"], found, known, features)

    @torch.inference_mode()
    def embed(self, nodes: _Nodes) -> Floats:
        """[n + 1, D]: the vectors of all items; zero of those that are never near another and have no features."""
        self.eval()
        out = np.zeros((len(nodes.near), self.config.dim), dtype=np.float32)
        rows = np.flatnonzero(nodes.features.has | (nodes.near[:, 0] > 0))
        for begin in range(0, len(rows), _BLOCK):
            block = rows[begin : begin + _BLOCK]
            out[block] = self(block, nodes).numpy()
        return out

    def embed_all(self, cache: Cache, seed: int = 0) -> Floats:
        """[n + 1, D]: vectors of all items of a log, inside its catalog and outside, by all its events.

        Raises InputError for a log whose items have not the features that this was trained on.
        """
        return self.embed(self.nodes(cache, baskets_of(cache, None, self.config.users), seed))

    def save(self, folder: Path) -> None:
        """Write it to a folder of its own. Raises InputError for one of something else, StorageError when the disk
        refuses."""
        check_place(folder)
        weights = write_tensors(folder, "weights", self.state_dict())
        facts = {
            "pinsage": self.config.model_dump(mode="json"),
            "kind": self.kind,
            "features": 0 if self.features is None else self.features.in_features,
            "catalog": write_catalog(folder, "catalog.arrow", self.catalog),
            "weights": weights,
        }
        write_manifest(folder / _NAME, facts)
        drop_others(folder, "weights", weights["file"])


class _Manifest(BaseModel, strict=True):
    pinsage: dict[str, Any]
    kind: str
    features: Annotated[int, Field(ge=0)]
    catalog: ListedCatalog
    weights: Listed


def check_place(folder: Path) -> None:
    """Make the folder that a PinSage is to be kept in. Raises InputError if something else is there, StorageError if it
    can't be made."""
    if folder.exists() and not (folder / _NAME).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there and holds no PinSage; expected a new folder. Choose another --save.")
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)


def load_pinsage(folder: Path) -> PinSage:
    """What `PinSage.save` wrote. Raises InputError for a folder of something else, ArtifactError if a file is not what
    the manifest says."""
    if not (folder / _NAME).is_file():
        raise InputError(
            f"{folder} holds no PinSage; expected a folder that `hiertcn embed LOG --method pinsage --save` wrote."
        )
    stated = read_manifest(folder / _NAME, _Manifest)
    config, catalog = PinSageConfig(**stated["pinsage"]), read_catalog(folder, stated["catalog"])
    model = PinSage(catalog, stated["kind"], stated["features"], config)
    model.load_state_dict(read_tensors(folder, stated["weights"]))
    return model.eval()


def train_pinsage(
    cache: Cache, config: PinSageConfig, seed: int, say: Callable[[str], None] = lambda line: None
) -> tuple[PinSage, Floats]:
    """PinSage on the train part of a cache, and the vectors [n + 1, D] it gives the items of its catalog.

    Raises InputError where no two items are picked near one another.
    """
    first, later = pairs(cache, "train", config.window)
    first, later = first[first != later], later[first != later]
    if not len(first):
        raise InputError(
            "No two items of the log's train part are picked in one session, so nothing says what is near what. Give a "
            "longer log, or a larger --session-gap."
        )
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = ItemFeatures(cache)
        model = PinSage(cache.catalog, features.kind, features.size, config)
        nodes = model.nodes(cache, baskets_of(cache, "train", config.users), seed, config.further)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, config.steps)
        for step in range(config.steps):
            drawn = random.integers(0, len(first), config.batch)
            shared = random.integers(1, cache.manifest.items + 1, config.negatives)
            hard = round(config.hard * step / config.steps)
            loss = _loss(model, nodes, first[drawn], later[drawn], shared, hard, random)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if (step + 1) % 100 == 0 or step + 1 == config.steps:
                say(f"step {step + 1:,} of {config.steps:,}, loss {loss.item():.4f}")
    return model, model.embed(nodes)


def _loss(
    model: PinSage, nodes: _Nodes, first: Ints, later: Ints, shared: Ints, hard: int, random: np.random.Generator
) -> Tensor:
    """Mean of relu(q·n − q·p + margin): queries `first` [P], positives `later` [P], negatives `shared` [K] of all pairs
    and `hard` of each; those equal to query or positive count as 0 (Ying et al., 2018, equation 1 and 3.3)."""
    own = nodes.further[first[:, None], random.integers(0, max(nodes.further.shape[1], 1), (len(first), hard))]
    rows, places = np.unique(np.concatenate([first, later, shared, own.ravel()]), return_inverse=True)
    vectors = model(rows[rows > 0], nodes)
    if rows[0] == 0:
        vectors = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
    parts = np.split(places.reshape(-1), np.cumsum([len(first), len(later), len(shared)]))
    queries, positives, others, nearer = (vectors[torch.from_numpy(part)] for part in parts)
    right = (queries * positives).sum(1, keepdim=True)
    wrong = [queries @ others.T, torch.einsum("pd,pkd->pk", queries, nearer.view(len(first), hard, queries.shape[1]))]
    total = torch.zeros(())
    for scores, negatives in zip(wrong, (shared[None], own), strict=True):
        if scores.shape[1]:
            same = (negatives == first[:, None]) | (negatives == later[:, None]) | (negatives == 0)
            total = total + F.relu(scores - right + model.config.margin).masked_fill(torch.from_numpy(same), 0).mean()
    return total
