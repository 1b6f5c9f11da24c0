"""Training events/s of HierTCN against HRNN, HierGRU, GRU, its padded form, and what matrix products would allow."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import CellGRU
from benchmarks.padded import padded_forward
from benchmarks.record import real_log, record, scratch
from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.impressions import MOST
from hiertcn.losses import sampled_softmax
from hiertcn.models import GRUConfig, HierTCNConfig, HRNNConfig, ModelConfig, VectorModel, build
from hiertcn.models.hiertcn import HierTCN
from hiertcn.models.items import GivenItems
from hiertcn.negatives import NegativeSampler
from hiertcn.optimizer import Optimizer
from hiertcn.preparation import prepare
from hiertcn.ragged import SessionBatch
from hiertcn.streams import known_rows

# The paper's batch, and smaller and larger ones: what a step costs beyond its arithmetic weighs by the batch.
ROWS, SESSIONS, CHUNK, NEGATIVES = (8, 16, 32, 64, 128), 10, 20, 512
WARM, MEASURED = 5, 40
OURS, PADDED, PRODUCTS = "HierTCN", "HierTCN, padded session by session", "products"
HRNN, CELLS = "HRNN", "HRNN on the framework's cell"
HIER_GRU, GRU = "HierGRU", "GRU"
Forward = Callable[[SessionBatch, Tensor], tuple[Tensor, Tensor]]


class Trainer:
    """The steps of the training loop around one forward pass."""

    def __init__(self, model: VectorModel, forward: Forward, events: np.ndarray, rows: int) -> None:
        self.model, self.forward = model, forward
        self.optimizer = Optimizer(model, 1e-3, 0.0, 1.0)
        self.sampler = NegativeSampler(events, NEGATIVES, 0, 1.0, False)
        self.carried = model.zero_state(rows)
        self.seconds: list[float] = []

    def step(self, batch: SessionBatch, number: int) -> None:
        for cached in ("by_user", "by_session", "_lags"):
            batch.__dict__.pop(cached, None)
        begun = time.perf_counter()
        queries, after = self.forward(batch, batch.initial(self.carried))
        negatives = self.sampler.draw(batch.targets, np.random.default_rng(number))
        asked = queries.index_select(0, batch.positions)
        sampled_softmax(asked, batch.targets, self.model.lookup, negatives).backward()
        self.optimizer.step()
        self.carried = batch.carry(self.carried, after)
        self.seconds.append(time.perf_counter() - begun)


def products(batch: SessionBatch, model: HierTCN) -> list[tuple[int, int, int]]:
    """(m, k, n) of every matrix product of one forward pass, on the positions that need it; the loss's, too."""
    positions, sessions, folds = len(batch.items), batch.sessions, len(batch.folds)
    given = model.items.project if isinstance(model.items, GivenItems) else None
    shapes = [] if given is None else [(positions, given.in_features, given.out_features)]
    shapes += [
        (positions, model.config.dim, model.config.channels[0]),
        (sessions, model.state_size, model.config.channels[0]),
    ]
    for cell in model.high.layers:
        shapes += [
            (folds, cell.weight_ih.shape[1], len(cell.weight_ih)),
            (folds, cell.weight_hh.shape[1], len(cell.weight_hh)),
        ]
    for block in model.tcn.blocks:
        for tap, weight in enumerate(block.weight):
            begin, _ = batch.lag(tap * block.dilation) if tap else (0, None)
            shapes.append((positions - begin, *weight.shape))
    shapes.append((positions, model.config.channels[-1], model.items.query_size))
    shapes.append((len(batch.targets), model.items.query_size, NEGATIVES if given is None else MOST + 1))
    return shapes


def seconds_of(shapes: list[tuple[int, int, int]]) -> float:
    """Seconds of those products and of the two of each one's backward pass, and nothing else."""
    operands = [(torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)) for m, k, n in shapes]
    begun = time.perf_counter()
    for left, right, grad in operands:
        left @ right
        grad @ right.T
        left.T @ grad
    return time.perf_counter() - begun


def run() -> None:
    with scratch() as folder:
        cache = prepare(real_log(), folder / "cache", min_item_events=5)
        found = [measure(cache, rows) for rows in ROWS]
    figures = {
        "by_rows": found,
        "settings": {
            "sessions": SESSIONS,
            "chunk": CHUNK,
            "negatives": NEGATIVES,
            "threads": torch.get_num_threads(),
            "steps": MEASURED,
        },
    }
    lines = [
        [
            str(one["rows"]),
            f"{one['events_a_step']:,.0f}",
            *(f"{one['events_per_second'][name]:,.0f}" for name in (OURS, HRNN)),
            f"{one['seconds_over_hiertcn'][HRNN]:.2f}",
            *(f"{one['seconds_over_hiertcn'][name]:.2f}" for name in (CELLS, HIER_GRU, GRU, PADDED)),
            f"{one['seconds_over_hiertcn'][PRODUCTS]:.0%}",
        ]
        for one in found
    ]
    sizes = found[0]["parameters_without_item_vectors"]
    record(
        "training_speed",
        figures,
        [
            "rows",
            "events a step",
            "HierTCN events/s",
            "HRNN events/s",
            "HierTCN over HRNN",
            "over HRNN on the framework's cell",
            "over HierGRU",
            "over GRU",
            "over its padded form",
            "share of matrix products",
        ],
        lines,
        [
            f"Batches of so many rows × {SESSIONS} chunks of at most {CHUNK} events of a real log, shared by all; "
            f"sampled softmax with {NEGATIVES} shared negatives, Adam, clipping; {MEASURED} steps after {WARM} before; "
            "ratios are medians of the steps'. The paper trains with 32 rows.",
            "Parameters without item vectors: "
            + ", ".join(f"{name} {sizes[name]:,}" for name in (OURS, HRNN, HIER_GRU, GRU))
            + ". The others are ours and "
            'read their GRUs with the same fast code as HierTCN; "on the framework\'s cell" is the same model with '
            "`torch.nn.GRUCell` called once a step, as it is usually written.",
            "The last column is the time of the matrix products of HierTCN's step alone (forward and backward, only "
            "those that its unpadded form needs), in the time of the step.",
        ],
    )


def measure(cache: Cache, rows: int) -> dict[str, Any]:
    events = cache.catalog.train_events
    paper = HierTCNConfig(head="embedding")

    def built(config: ModelConfig) -> VectorModel:
        model = build(config, events, 0)
        assert isinstance(model, VectorModel)
        return model

    models = {
        OURS: built(paper),
        PADDED: built(paper),
        HRNN: built(HRNNConfig(units=184)),
        CELLS: built(HRNNConfig(units=184)),
        HIER_GRU: built(HierTCNConfig(low="gru", channels=(160,))),
        GRU: built(GRUConfig(units=192)),
    }
    padded = models[PADDED]
    assert isinstance(padded, HierTCN)
    for level in (models[CELLS].low, models[CELLS].high):
        level.__class__ = CellGRU
    trainers = {name: Trainer(model, model, events, rows) for name, model in models.items()}
    trainers[PADDED].forward = lambda batch, state: padded_forward(padded, batch, state)
    sizes = {name: sum(p.numel() for p in m.parameters()) - m.items.weight.numel() for name, m in models.items()}
    batches = SessionBatches(
        cache,
        "train",
        item_rows=known_rows(cache.catalog),
        rows=rows,
        sessions=SESSIONS,
        chunk=CHUNK,
        shuffle=True,
    )
    # Assembled beforehand: the generator has a benchmark of its own, and works in another thread.
    ready = list(islice(batches, WARM + MEASURED))
    trained, alone = 0, []
    for number, batch in enumerate(ready):
        for trainer in trainers.values():
            trainer.step(batch, number)
        if number == 0:
            apart = {
                one: float((models[one].vectors - models[other].vectors).detach().abs().max())
                for one, other in ((PADDED, OURS), (CELLS, HRNN))
            }
        alone.append(seconds_of(products(batch, padded)))
        trained += len(batch.targets) if number >= WARM else 0
    seconds = {name: trainer.seconds[WARM:] for name, trainer in trainers.items()} | {PRODUCTS: alone[WARM:]}
    # The median of each step's ratio: what else the machine does meets all of a step alike.
    mine = np.array(seconds[OURS])
    return {
        "rows": rows,
        "steps": len(ready) - WARM,
        "events_a_step": trained / (len(ready) - WARM),
        "events_per_second": {name: trained / float(np.sum(values)) for name, values in seconds.items()},
        "seconds_over_hiertcn": {name: float(np.median(np.array(v) / mine)) for name, v in seconds.items()},
        "parameters_without_item_vectors": sizes,
        "largest_weight_difference_after_one_step": apart,
    }
