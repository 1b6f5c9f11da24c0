"""Where the best items for a query are found. One protocol (protocol.py): an index takes vectors, not models."""

from __future__ import annotations

__all__ = ["FORMS", "ExactIndex", "Index", "form_for", "open_index"]

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy.typing as npt

from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown
from hiertcn.retrieval.exact import ExactIndex
from hiertcn.retrieval.protocol import SMALL, Index

_PORT = 6333
_FAISS = {"faiss": None} | {f"faiss:{kind}": kind for kind in ("flat", "hnsw", "ivf", "ivfpq")}
FORMS = (
    "auto",
    "exact",
    "int8",
    *_FAISS,
    "qdrant://HOST:PORT",
    "qdrants://HOST:PORT",
    "qdrant:///FOLDER",
    "qdrant:memory",
)
"""What `open_index` can be told."""


def open_index(
    url: str, vectors: npt.NDArray[Any], *, cache: Path | None = None, threads: int = 1, biased: bool = False
) -> Index:
    """The index named by `url`, one of FORMS, over `vectors`, float32 or float16 [n + 1, Q].

    `auto` is `exact` for few items, for more `faiss` where it is installed, else `int8`; for vectors whose last number
    is a bias, `biased`, `int8`: it lies far outside what the cells of faiss are made for. `qdrants` is Qdrant through
    TLS; a server's key is read from the environment (`qdrant.API_KEY`). cache, threads: of approximate ones, as
    ApproximateIndex has them. Raises InputError for any other url or for vectors that are none, and StorageError where
    a server can't be reached.
    """
    if url == "auto":
        url = form_for(len(vectors) - 1, biased)
    if url == "exact":
        return ExactIndex(vectors)
    if url == "int8" or url in _FAISS:
        from hiertcn.retrieval.approximate import ApproximateIndex

        return ApproximateIndex(vectors, _FAISS.get(url, url), cache=cache, threads=threads)
    if url.startswith("qdrant"):
        where = _server(url)
        if where is not None:
            from hiertcn.retrieval.qdrant import QdrantIndex

            return QdrantIndex(vectors, where)
    raise InputError(
        f"{shown(url)} is no index{nearest(url, FORMS)}; expected one of {', '.join(FORMS)}. Give one of these."
    )


def form_for(items: int, biased: bool) -> str:
    """What `auto` is for so many items, with what is installed; biased: as of `open_index`."""
    if items < SMALL:
        return "exact"
    return "faiss" if find_spec("faiss") and not biased else "int8"


def _server(url: str) -> dict[str, Any] | None:
    """How the client of Qdrant is opened; None if `url` does not say."""
    if url == "qdrant:memory":
        return {"location": ":memory:"}
    if url.startswith("qdrant:///") and len(url) > len("qdrant:///"):
        return {"path": url.removeprefix("qdrant:///")}
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError:
        return None
    # A key in an address would end up in logs.
    if parts.scheme not in ("qdrant", "qdrants") or not parts.hostname or "@" in parts.netloc:
        return None
    if parts.path.strip("/") or parts.query or parts.fragment:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {"url": f"{'https' if parts.scheme == 'qdrants' else 'http'}://{host}:{port}"}
