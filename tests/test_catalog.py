"""Ids to rows: several at once as one by one, whatever they look like."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiertcn.catalog import Catalog

ENDS = [-(2**63), -(10**18), 10**18, 2**63 - 1]
ODD = ["007", "+5", "-0", "1_7", "1\n7", "7\n", " 17", "٣", str(2**63), "9" * 19, "-" + "9" * 25, "x"]


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
@given(
    ids=st.lists(st.integers(-20, 20) | st.sampled_from(ENDS), unique=True, max_size=30),
    beyond=st.integers(0, 5),
    asked=st.lists((st.integers(-25, 25) | st.sampled_from(ENDS)).map(str) | st.sampled_from(ODD), max_size=30),
)
def test_rows_of_several_are_those_of_each(
    kind: type[pl.DataType], ids: list[int], beyond: int, asked: list[str]
) -> None:
    items = pl.DataFrame({"item_id": pl.Series(ids, dtype=pl.Int64).cast(kind), "title": None, "link": None})
    # The last ones are known by name only.
    catalog = Catalog(items.with_columns(train_events=pl.lit(1)), max(len(ids) - beyond, 0))
    found = catalog.rows_of(asked)
    assert found.tolist() == [catalog.row(one) for one in asked]
    own = catalog.rows_of([str(one) for one in ids[: catalog.size]])
    assert own.tolist() == list(range(1, catalog.size + 1))
