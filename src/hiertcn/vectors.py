"""Vectors that items come with: read from the file they are in, kept as a table with a row for each item row.

The table is a `.npy` file, float32 or float16 [items + 1, D], row 0 zero. It is opened by memory map, so that of ten
million vectors only those are read that are asked for, and any NumPy opens it.
"""

from __future__ import annotations

__all__ = ["GivenVectors", "Vectors", "find_vector_column", "open_vectors", "read_vectors", "write_vectors"]

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from safetensors import SafetensorError, safe_open

from hiertcn.errors import ArtifactError, InputError, nearest
from hiertcn.quarantine import EXAMPLES, shown
from hiertcn.sources import Source

_KNOWN = ("vector", "vectors", "embedding", "embeddings", "vec", "features")
_ROWS = 1 << 15
_ARRAYS = (".npy", ".safetensors")

Vectors = npt.NDArray[Any]
"""float32 or float16 [items + 1, D], memory-mapped."""
Block = tuple[Vectors, npt.NDArray[np.bool_]]
"""Vectors of consecutive lines, and which of them are there and of the right size."""


@dataclass(frozen=True)
class GivenVectors:
    """Vectors of size `dim`, one for each of `lines` lines of an item list, `blocks` of lines at a time."""

    name: str
    lines: int
    dim: int
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Block]]

    def only(self, kept: npt.NDArray[np.bool_]) -> GivenVectors:
        """Those of the lines that are marked in `kept` [lines]."""

        def blocks() -> Iterator[Block]:
            begin = 0
            for block, right in self.blocks():
                mine = kept[begin : begin + len(block)]
                begin += len(block)
                yield block[mine], right[mine]

        return replace(self, lines=int(kept.sum()), blocks=blocks)


def find_vector_column(sources: Sequence[Source], wanted: str | None) -> str | None:
    """The column of vectors of item lists: `wanted`, or one of a well-known name. Raises InputError if it is none."""
    if sources[0].kind != "parquet":
        if wanted is not None:
            raise InputError(
                f"{sources[0].name} is no Parquet; expected one for a column of vectors. Write the list as Parquet, or "
                f"give the vectors in a file of their own ({', '.join(_ARRAYS)}) with --vectors."
            )
        return None
    schema, *others = (pq.read_schema(source.path) for source in sources if source.kind == "parquet")
    packed = any(source.path.name != source.name for source in sources)
    lists = [field.name for field in schema if _is_vector(field.type)]
    if packed and lists:
        raise InputError(f"{sources[0].name} is packed and holds vectors; give the Parquet file itself.")
    if wanted is None:
        wanted = next((name for name in lists if name.lower() in _KNOWN), None)
        if wanted is None:
            return None
    lacking = any(wanted not in other.names or not _is_vector(other.field(wanted).type) for other in others)
    if wanted in lists and (lacking or len(others) + 1 < len(sources)):
        raise InputError(
            f"{sources[0].name} has vectors in column {shown(wanted)}, and another file of the item list has not; "
            "expected them in all or in none. Add them there."
        )
    if wanted not in lists:
        kind = f", but one of {schema.field(wanted).type}" if wanted in schema.names else nearest(wanted, lists)
        raise InputError(
            f"{sources[0].name} has no column {shown(wanted)} of vectors{kind}; its columns of lists of floats are "
            f"{shown(', '.join(lists)) if lists else 'none'}. Choose another --vector-column."
        )
    return wanted


def _is_vector(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and pa.types.is_floating(kind.value_type)


def read_vectors(given: Path | Sequence[Source], column: str = "") -> GivenVectors:
    """The vectors of a `.npy` or safetensors file, a line of an item list each, or of a column of Parquet files.

    Raises InputError for a file that holds no such thing.
    """
    return _of_array(given) if isinstance(given, Path) else _of_column(given, column)


def _of_column(sources: Sequence[Source], column: str) -> GivenVectors:
    files = [pq.ParquetFile(source.path) for source in sources]
    batches = (batch for file in files for batch in file.iter_batches(_ROWS, columns=[column]))
    lengths = (batch.column(0).value_lengths() for batch in batches)
    dim = next((size for batch in lengths for size in batch.drop_null().to_pylist() if size), None)
    if dim is None:
        raise InputError(f"Column {column!r} of {sources[0].name} holds no vector. Give every item one.")
    half = pa.types.is_float16(files[0].schema_arrow.field(column).type.value_type)
    dtype = np.dtype(np.float16 if half else np.float32)

    def blocks() -> Iterator[Block]:
        for file in files:
            for batch in file.iter_batches(_ROWS, columns=[column]):
                lists = batch.column(0)
                right = np.asarray(lists.value_lengths().fill_null(-1)) == dim
                values = lists.filter(pa.array(right)).flatten().to_numpy(zero_copy_only=False)
                out = np.zeros((len(lists), dim), dtype=dtype)
                # Null numbers inside a vector come out as NaN.
                out[right] = values.reshape(-1, dim)
                yield out, right

    lines = sum(file.metadata.num_rows for file in files)
    return GivenVectors(f"column {column!r} of {sources[0].name}", lines, dim, dtype, blocks)


def _of_array(path: Path) -> GivenVectors:
    if path.suffix not in _ARRAYS or not path.is_file():
        what = "is of another kind" if path.is_file() else "is not there"
        raise InputError(
            f"The vectors {shown(str(path))}: the file {what}; expected {' or '.join(_ARRAYS)}, a row for each line of "
            "the item list."
        )
    try:
        rows: Any
        if path.suffix == ".npy":
            rows = open_memmap(path, mode="r")
            shape, kind = rows.shape, str(rows.dtype)
        else:
            tensors: Any = safe_open(path, framework="numpy")
            names = list(tensors.keys())
            if len(names) != 1:
                raise ValueError(f"it holds {len(names)} tensors, {shown(', '.join(names))}; expected one")
            rows = tensors.get_slice(names[0])
            shape, kind = (
                tuple(rows.get_shape()),
                {"F16": "float16", "F32": "float32", "F64": "float64"}.get(rows.get_dtype(), rows.get_dtype()),
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The vectors {shown(str(path))} can't be read: {shown(str(error))}. Write them again."
        ) from error
    if len(shape) != 2 or not shape[1] or kind not in ("float16", "float32", "float64"):
        raise InputError(
            f"The vectors {shown(str(path))} are {kind} of shape {tuple(shape)}; expected floats [items, dimension]. "
            "Write them so."
        )
    dtype = np.dtype(np.float16 if kind == "float16" else np.float32)

    def blocks() -> Iterator[Block]:
        for begin in range(0, shape[0], _ROWS):
            block = np.asarray(rows[begin : min(begin + _ROWS, shape[0])]).astype(dtype)
            yield block, np.ones(len(block), dtype=bool)

    return GivenVectors(str(path), shape[0], shape[1], dtype, blocks)


def write_vectors(
    path: Path,
    given: GivenVectors,
    ids: pl.Series,
    rows: npt.NDArray[np.int64],
    height: int,
    before: Vectors | None = None,
) -> None:
    """Write the table of `height` rows: the vector of line i, whose item is `ids[i]`, to row `rows[i]`, and at its head
    the rows of the table `before`, if there is one.

    A block of lines is in memory at a time. Raises InputError for vectors that are missing, of another size, zero, or
    hold what is no number, naming the first items.
    """
    if given.lines != len(ids):
        raise InputError(
            f"{given.name} holds {given.lines:,} vectors and the item list {len(ids):,} items; expected one for each, "
            "in the same order."
        )
    dtype = given.dtype if before is None else before.dtype
    table = open_memmap(path, mode="w+", dtype=dtype, shape=(height, given.dim))
    with path.open("rb+") as file:
        # A full disk is told here; in the middle of writing to a map it would kill the process.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    held = 0 if before is None else len(before)
    for at in range(0, held, _ROWS):
        table[at : min(at + _ROWS, held)] = before[at : at + _ROWS]  # type: ignore[index]
    faults: dict[str, list[int]] = {"missing or of another size": [], "not finite": [], "zero": []}
    begin = 0
    for block, right in given.blocks():
        finite, zero = np.isfinite(block).all(axis=1), ~block.any(axis=1)
        for name, wrong in zip(faults, (~right, right & ~finite, right & zero), strict=True):
            faults[name] += (begin + np.flatnonzero(wrong)).tolist()
        table[rows[begin : begin + len(block)]] = block
        begin += len(block)
    if any(faults.values()):
        told = "; ".join(
            f"{len(lines):,} {name}, such as of {shown(ids.gather(lines[:EXAMPLES]).to_list())}"
            for name, lines in faults.items()
            if lines
        )
        raise InputError(
            f"{given.name}: of {len(ids):,} vectors of size {given.dim}, {told}. Every item needs a vector of finite "
            "numbers, not all zero; mend them or leave those items out."
        )
    table.flush()


def open_vectors(path: Path, height: int) -> Vectors:
    """The table at `path`, by memory map. Raises ArtifactError unless it has `height` rows."""
    try:
        # Copy on write: torch takes only arrays that may be written to, and nothing ever reaches the file.
        table: Vectors = open_memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no table of vectors ({shown(str(error))}). Prepare the log again.") from error
    if table.ndim != 2 or len(table) != height or table.dtype not in (np.float16, np.float32):
        raise ArtifactError(
            f"{path} is {table.dtype} of shape {table.shape}; expected floats of {height:,} rows. Prepare the log "
            "again."
        )
    return table
