"""Vectors like those that models learn, queries like those they ask, and the plainest search there is."""

from __future__ import annotations

import numpy as np


def learned_vectors(items: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 [items + 1, dim]: clusters of unequal sizes, few directions that matter most, unequal norms."""
    rng = np.random.default_rng(seed)
    clusters = max(8, items // 500)
    scales = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32)
    sizes = 1 / np.arange(1, clusters + 1)
    vectors = np.zeros((items + 1, dim), dtype=np.float32)
    for begin in range(1, items + 1, 1 << 16):
        block = vectors[begin : begin + (1 << 16)]
        noise = rng.standard_normal(block.shape, dtype=np.float32)
        block[:] = (centres[rng.choice(clusters, len(block), p=sizes / sizes.sum())] + noise) * scales
        norms = np.linalg.norm(block, axis=1)
        block *= (3 * rng.lognormal(0, 0.4, len(block)) / norms)[:, None].astype(np.float32)
    return vectors


def asked(vectors: np.ndarray, queries: int, seed: int = 1) -> np.ndarray:
    """float32 [queries, dim]: directions of items, turned by noise."""
    rng = np.random.default_rng(seed)
    dim = vectors.shape[1]
    near = vectors[rng.integers(1, len(vectors), queries)].astype(np.float32)
    noise = rng.standard_normal((queries, dim), dtype=np.float32) * np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return 3 * near + 2 * noise


def plain_search(
    items: dict[int, np.ndarray], queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of `items`, by row, in float64: rows [T, k], 0 where there are no more, and scores, −inf there."""
    kept = [row for row in sorted(items) if allowed is None or (row < len(allowed) and allowed[row])]
    rows, scores = np.zeros((len(queries), k), np.int64), np.full((len(queries), k), -np.inf)
    for at, query in enumerate(queries.astype(np.float64)):
        products = [float(query @ items[row].astype(np.float64)) for row in kept]
        order = sorted(range(len(kept)), key=lambda n: (-products[n], kept[n]))[:k]
        rows[at, : len(order)] = [kept[n] for n in order]
        scores[at, : len(order)] = [products[n] for n in order]
    return rows, scores


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """The share of `best` [T, k] that is in `found` [T, k]."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), best.tolist(), strict=True)]))
