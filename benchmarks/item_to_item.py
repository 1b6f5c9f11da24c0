"""Item vectors out of a log: what each way of making them tells of held-out sessions."""

from __future__ import annotations

import time
from dataclasses import asdict

from benchmarks.record import real_log, record, scratch
from hiertcn.embedding import cooccurrence, item_to_item, svd_vectors
from hiertcn.neighbourhoods import baskets_of
from hiertcn.pinsage import PinSageConfig, train_pinsage
from hiertcn.preparation import prepare

DIM = 128


def run() -> None:
    """Benchmark `item_to_item`."""
    rows, figures = [], {}
    with scratch() as folder:
        for split in ("last", "users"):
            cache = prepare(real_log(), folder / split, session_gap=1800, min_item_events=5, split=split)
            begun = time.perf_counter()
            vectors = {"SVD": svd_vectors(cooccurrence(cache), DIM, seed=0)}
            seconds = {"SVD": time.perf_counter() - begun}
            begun = time.perf_counter()
            pinsage, vectors["PinSage"] = train_pinsage(cache, PinSageConfig(dim=DIM), seed=0)
            seconds["PinSage"] = time.perf_counter() - begun
            nodes = pinsage.nodes(cache, baskets_of(cache, "train"), seed=0)
            nodes.known[:] = 0
            vectors["PinSage, every item read as if it were new"] = pinsage.embed(nodes)
            for name, found in ((name, item_to_item(cache, made)) for name, made in vectors.items()):
                figures[f"{split}: {name}"] = {**asdict(found), "seconds": seconds.get(name)}
                told = f"{seconds[name]:.0f}" if name in seconds else ""
                rows.append(
                    [split, name, f"{found.recall_at_20:.4f}", f"{found.of_popular:.4f}", f"{found.pairs:,}", told]
                )
    notes = [
        f"Of two consecutive picks in a test session: how often the second is among the 20 nearest of the first, "
        f"by {DIM}-d vectors made of the train part's sessions (EB-NeRD demo, items of at least 5 events). `popular`: "
        "among the 20 with the most train events. The last way hides what was learned of each item, as of one that "
        "came after training, and leaves the graph."
    ]
    record("item_to_item", figures, ["split", "vectors", "recall@20", "popular", "pairs", "seconds"], rows, notes)
