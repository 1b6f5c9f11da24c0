"""Training events/s with given 512-d vectors and 20 negatives an event, against learned ones, per multiply-add."""

from __future__ import annotations

import time
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import torch

from benchmarks.record import real_log, record, scratch
from benchmarks.training_speed import CHUNK, NEGATIVES, SESSIONS, products
from hiertcn.batching import SessionBatches
from hiertcn.models import HierTCNConfig, build
from hiertcn.models.hiertcn import HierTCN
from hiertcn.objective import LossConfig, Objective
from hiertcn.optimizer import Optimizer
from hiertcn.preparation import prepare
from hiertcn.ragged import SessionBatch
from hiertcn.settings import read_settings
from hiertcn.streams import known_rows

ROWS, DIM = 32, 512
WARM, MEASURED = 5, 40
LEARNED, GIVEN = "learned 128-d, sampled softmax", "given 512-d, 20 negatives an event"


class Trainer:
    """Steps of training by a config's loss; seconds and multiply-adds of each, forward pass."""

    def __init__(self, model: HierTCN, loss: LossConfig, events: np.ndarray) -> None:
        self.model, self.objective = model, Objective(events, loss)
        self.optimizer = Optimizer(model, 1e-3, 0.0, 1.0)
        self.carried = model.zero_state(ROWS)
        self.seconds: list[float] = []
        self.work: list[int] = []

    def step(self, batch: SessionBatch, number: int) -> None:
        batch.__dict__.pop("_lags", None)
        begun = time.perf_counter()
        queries, after = self.model(batch, batch.initial(self.carried))
        asked = queries.index_select(0, batch.positions)
        self.objective(self.model, asked, batch, np.random.default_rng(number)).backward()
        self.optimizer.step()
        self.carried = batch.carry(self.carried, after)
        self.seconds.append(time.perf_counter() - begun)
        self.work.append(sum(prod(shape) for shape in products(batch, self.model)))


def run() -> None:
    with scratch() as folder:
        cache = prepare(real_log(), folder / "cache", min_item_events=5)
        events = cache.catalog.train_events
        vectors = np.random.default_rng(0).normal(size=(len(events), DIM)).astype(np.float32)
        vectors[0] = 0
        pinterest, loss = read_settings("pinterest")
        sampled = LossConfig(
            loss="sampled_softmax", uniform_negatives=NEGATIVES, popular_negatives=0, in_batch_negatives=False
        )
        models: dict[str, tuple[Any, LossConfig]] = {
            LEARNED: (build(HierTCNConfig(), events, 0), sampled),
            GIVEN: (build(pinterest, events, 0, vectors), loss),
        }
        trainers = {name: Trainer(model, loss, events) for name, (model, loss) in models.items()}
        batches = SessionBatches(
            cache,
            "train",
            item_rows=known_rows(cache.catalog),
            rows=ROWS,
            sessions=SESSIONS,
            chunk=CHUNK,
            shuffle=True,
        )
        targets = []
        for number, batch in enumerate(list(islice(batches, WARM + MEASURED))):
            targets.append(len(batch.targets))
            for trainer in trainers.values():
                trainer.step(batch, number)
    kept = slice(WARM, None)
    rate = {name: sum(targets[kept]) / sum(t.seconds[kept]) for name, t in trainers.items()}
    per_event = {name: sum(t.work[kept]) / sum(targets[kept]) for name, t in trainers.items()}
    # The median over steps of the ratio of (multiply-adds / second); what else the machine does meets both alike.
    speeds = {name: np.array(t.work[kept]) / np.array(t.seconds[kept]) for name, t in trainers.items()}
    share = float(np.median(speeds[GIVEN] / speeds[LEARNED]))
    record(
        "vector_speed",
        {
            "events_per_second": rate,
            "multiply_adds_an_event": per_event,
            "rate_per_multiply_add_over_learned": share,
            "settings": {"rows": ROWS, "sessions": SESSIONS, "chunk": CHUNK, "threads": torch.get_num_threads()},
            "steps": MEASURED,
        },
        ["what", "training events/s", "multiply-adds an event (forward)"],
        [[name, f"{rate[name]:,.0f}", f"{per_event[name]:,.0f}"] for name in trainers],
        [
            f"The preset `pinterest` (four blocks, fixed vectors, hinge_logsigmoid) against the paper's two blocks, "
            f"learned vectors and {NEGATIVES} shared negatives, on the same batches of a real log: per multiply-add it "
            f"trains at {share:.0%} of the rate (median of {MEASURED} steps)."
        ],
    )
