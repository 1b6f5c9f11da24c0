"""The claims of You et al. (WWW 2019), each by a definition of our own, on a real log: writes docs/claims.md.

What takes hours, tuning every model with the same budget, goes on where it was stopped: it is kept in claims/.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import KEPT, kept_cache, machine, main, record, signed, table, within
from benchmarks.training_speed import GRU, HIER_GRU, HRNN, measure
from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.comparing import compare
from hiertcn.comparison import Comparison
from hiertcn.files import write_text
from hiertcn.models.tcn import receptive_field
from hiertcn.streams import known_rows
from hiertcn.watching import Watch

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
MODELS = (
    *("strong", "hrnn", "gru", "hier_gru", "hier_mv", "tcn", "sasrec", "var", "moving_average"),
    *("moving_average_exponential", "moving_average_gap", "stan", "vsknn", "vsknn_ebr", "item_knn"),
    *("sequential_rules", "most_frequent", "last_items", "popularity", "trending"),
)
# Neither You et al. nor their critics compare with it.
BESIDE = "trending"
SPLITS = ("last", "users")
BUDGET = {"trials": 2, "epochs": 5, "patience": 2}
# Of the items at Pinterest, of the state of `strong` (two layers of 128; 50 rows), of the six layers of the flat TCN.
DIM, STATE, SEEN = 512, 306, receptive_field(5, 6)
FLOAT = 4
ROWS, BATCHES = 32, 40
CLAIMED = {"recall@10": 0.18, "mrr": 0.10}
LOG, DAY = 1.6e9, 86_400


def run() -> None:
    caches = {split: kept_cache(KEPT / split / "cache", split=split) for split in SPLITS}
    speed = measure(caches["last"], ROWS)
    held = memory(caches["last"])
    found = {split: _compared(cache, split) for split, cache in caches.items()}
    accuracy = {split: _lifts(one) for split, one in found.items()}
    over = speed["seconds_over_hiertcn"]
    rivals = {name: over[name] for name in (HRNN, HIER_GRU, GRU)}
    rows = [
        [
            "2.5× faster than RNN-based models",
            f"steps of training a second, {ROWS} rows a batch, parameters within 10%, the same loss, side by side; "
            "HierTCN without the boosts of `strong`",
            "; ".join(f"{name} {ratio:.2f}×" for name, ratio in rivals.items()),
            _holds(min(rivals.values()) >= 2.5, rivals[HRNN] >= 2.5),
        ],
        [
            "90% less data memory than TCN-based models",
            f"kept of a user to go on: {SEEN} vectors of {DIM} numbers, against a state of {STATE} and the vectors of "
            f"the running session ({held['running_session']:.1f} on average)",
            f"{held['kept_tcn']:,} bytes against {held['kept_hiertcn']:,.0f}: {held['kept_less']:.1%} less",
            _holds(held["kept_less"] >= 0.9),
        ],
        [
            "the same",
            f"vectors of a training batch for the same users and targets ({ROWS} rows): a user's items, and for the "
            "flat TCN those it sees before them",
            f"{held['batch_tcn'] / 1e6:.2f} MB (padded to the longest: {held['batch_tcn_padded'] / 1e6:.2f}) against "
            f"{held['batch_hiertcn'] / 1e6:.2f}: {held['batch_less']:.1%} less ({held['batch_less_padded']:.1%})",
            _holds(held["batch_less"] >= 0.9, held["batch_less_padded"] >= 0.9),
        ],
    ]
    for split in SPLITS:
        for metric, claimed in CLAIMED.items():
            for whom, lift in accuracy[split][metric].items():
                rows.append(
                    [
                        f"{metric} up by {claimed:.0%}",
                        f"split `{split}`, whole catalog, every model tuned with {BUDGET['trials']} trials of "
                        f"{BUDGET['epochs']} passes; over {whom}",
                        f"{lift['ours']:.4f} against {lift['theirs']:.4f} of {lift['best']}: {lift['relative']:+.1%} "
                        f"({lift['interval'][0]:+.4f}…{lift['interval'][1]:+.4f})",
                        _holds(lift["relative"] >= claimed, lift["interval"][0] > 0),
                    ]
                )
    rate = _rate(found["last"])
    rows.append(
        [
            "1.6 billion interactions in 24 hours on one GPU",
            f"one pass at the rate at which `strong` was trained here, on {torch.get_num_threads()} threads, no GPU",
            f"{rate:,.0f} events/s: {LOG / rate / DAY:.1f} days",
            _holds(LOG / rate <= DAY),
        ]
    )
    columns = ["claim", "our definition", "our figure", "does it hold"]
    notes = [
        "The whole reports of the two comparisons, with pictures, costs and segments, are what `make claims` leaves in "
        "claims/last/out and claims/users/out.",
        "Max-item, which needs vectors that items come with, is compared by `make bench ARGS=losses_last`.",
        "Models that failed: " + (", ".join(f"{s}: {n}" for s, one in found.items() for n in one.failures) or "none."),
    ]
    figures = {"speed": speed, "memory": held, "accuracy": accuracy, "budget": BUDGET}
    record("claims", figures, columns, rows, notes, command="make claims")
    described = ", ".join(f"{key} {value}" for key, value in machine().items())
    page = [
        "# The paper's claims",
        "Written by `make claims`. The paper gives no definitions, so these are ours. The log is EB-NeRD demo; the "
        f"machine: {described}.",
        table(columns, rows),
        *notes,
        "## Every model",
        f"Tuned on the validation part with {BUDGET['trials']} trials, the defaults first, of at most "
        f"{BUDGET['epochs']} passes; the best one then ranked the test part, once. Per event, with 95% intervals by "
        "bootstrap over users; differences are paired.",
        *(part for split, one in found.items() for part in (f"Split `{split}`:", _models(one))),
    ]
    write_text(PAGE, "\n\n".join(page) + "\n")


def memory(cache: Cache) -> dict[str, float]:
    """Bytes of item vectors that HierTCN and a flat TCN hold: of a user between two events, and of a training batch."""
    batches = SessionBatches(
        cache, "train", item_rows=known_rows(cache.catalog), rows=ROWS, sessions=10, chunk=20, shuffle=True
    )
    ours = flat = padded = 0
    read = np.zeros(ROWS, dtype=np.int64)
    lengths = []
    for batch in islice(batches, BATCHES):
        lengths.append(batch.session_lengths)
        per_user = np.add.reduceat(batch.session_lengths, np.cumsum(batch.user_sessions) - batch.user_sessions)
        row = batch.carried.numpy()
        # What a flat network has to see of a user's items before the batch.
        before = np.where(row >= 0, np.minimum(read[row], SEEN - 1), 0)
        ours += int(per_user.sum()) * DIM + len(per_user) * STATE
        flat += int((per_user + before).sum()) * DIM
        padded += len(per_user) * int((per_user + before).max()) * DIM
        last = batch.closing.numpy()
        read[batch.rows.numpy()] = (per_user + np.where(row >= 0, read[row], 0))[last]
    # Between two events a session runs: weighed by events, half of it is over.
    every = np.concatenate(lengths)
    running = float((every * (every + 1) / 2).sum() / every.sum())
    kept = (STATE + running * DIM) * FLOAT
    return {
        "running_session": running,
        "kept_tcn": SEEN * DIM * FLOAT,
        "kept_hiertcn": kept,
        "kept_less": 1 - kept / (SEEN * DIM * FLOAT),
        "batch_hiertcn": ours * FLOAT / BATCHES,
        "batch_tcn": flat * FLOAT / BATCHES,
        "batch_tcn_padded": padded * FLOAT / BATCHES,
        "batch_less": 1 - ours / flat,
        "batch_less_padded": 1 - ours / padded,
    }


def _compared(cache: Cache, split: str) -> Comparison:
    budget = dict(BUDGET)
    return compare(cache, MODELS, budget.pop("trials"), KEPT / split / "out", **budget, progress=Watch())


def _rate(found: Comparison) -> float:
    assert found.first is not None
    rate: float = found.first.figures["trained_targets_per_second"]
    return rate


def _lifts(found: Comparison) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each metric per event: ours, that of the best model of the literature and of the one beside it, by whom it is,
    and the paired differences to them."""
    first = found.first
    out: dict[str, dict[str, dict[str, Any]]] = {}
    assert first is not None
    for metric in CLAIMED:
        others = [model for model in found.models[1:] if model.name != BESIDE]
        best = max(others, key=lambda model: model.evaluation.table.event[metric])
        beside = [model for model in found.models if model.name == BESIDE]
        out[metric] = {}
        for whom, model in (("the best baseline", best), *((f"`{BESIDE}`, a rule of ours", one) for one in beside)):
            theirs, ahead = model.evaluation.table.event[metric], found.of_first[model.name]
            out[metric][whom] = {
                "ours": first.evaluation.table.event[metric],
                "theirs": theirs,
                "best": model.name,
                "relative": ahead.event[metric] / theirs,
                "interval": ahead.event_interval[metric],
            }
    return out


def _models(found: Comparison) -> str:
    first = found.names[0]
    columns = ["model", *CLAIMED, *(f"{first} − it, {metric}" for metric in CLAIMED)]
    rows = []
    for model in sorted(found.models, key=lambda one: -one.evaluation.table.event["mrr"]):
        own, ahead = model.evaluation.table, found.of_first.get(model.name)
        told = [within(own.event[m], own.event_interval[m]) for m in CLAIMED]
        told += ["" if ahead is None else signed(ahead.event[m], ahead.event_interval[m]) for m in CLAIMED]
        rows.append([model.name, *told])
    return table(columns, rows)


def _holds(whole: bool, part: bool = False) -> str:
    return "yes" if whole else "in part" if part else "no"


if __name__ == "__main__":
    sys.exit(main({"claims": run}, ["claims"]))
