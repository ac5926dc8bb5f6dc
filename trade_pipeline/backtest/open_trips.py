"""Positions still open at the end of a backtest, a row each: what they earned so far.

With the nets of closed trips and the financing they add up to the change of equity. Start at
`open_trips`.
"""

from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.evaluation.excursions import excursions
from trade_pipeline.evaluation.trades import SIDES, TRIP_SCHEMA, TradeTables
from trade_pipeline.training.dataset import Dataset

SIGNS = {name: sign for sign, name in SIDES.items()}
SCHEMA = TRIP_SCHEMA | {
    "bars": pl.Int64(),
    "realised": pl.Float64(),
    "unrealised": pl.Float64(),
    "mfe": pl.Float64(),
    "mae": pl.Float64(),
    "mfe_hi": pl.Float64(),
}


def open_trips(tables: TradeTables, dataset: Dataset, last: int) -> pl.DataFrame:
    """A row a trip that is still open, with the columns of a closed one and no exit or net.

    `quantity` is all that was entered, `entry_price` its mean, and `fee` all that was paid.
    `realised` is the net result of what was closed again, `unrealised` what the rest would earn
    closed at the last close for free, less the fees of its entry. `bars` are opens since entry.

    Args:
        tables: of `evaluation.trades.match_fills`.
        dataset: what the backtest ran on.
        last: row of its last close.
    """
    high, low, close = (
        {name: np.asarray(prices)[: last + 1, n] for n, name in enumerate(dataset.instruments)}
        for prices in (dataset.high, dataset.low, dataset.close)
    )
    rows, parts = [], []
    for trip in dict.fromkeys(tables.open_lots["trip"]):
        lots = tables.open_lots.filter(pl.col("trip") == trip)
        closed = tables.matches.filter(pl.col("trip") == trip)
        parts += [closed, lots.with_columns(exit_row=pl.lit(last + 1, pl.Int64))]
        rows.append(_row(lots, closed, last, float(close[lots["instrument"][0]][last])))
    if not rows:
        return pl.DataFrame(schema=SCHEMA)
    # No exit row: excursions count to the last bar given.
    found = excursions(
        pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows[0]}),
        high,
        low,
        pl.concat(parts, how="diagonal"),
    )
    return pl.concat([pl.DataFrame(schema=SCHEMA), found], how="diagonal")


def _row(lots: pl.DataFrame, closed: pl.DataFrame, last: int, mark: float) -> dict[str, Any]:
    """One trip: what it still holds, and the matches that closed the rest."""
    columns = ["entry_row", "entry_fill", "entry_time", "entry_reason", "quantity", "entry_price"]
    entries = pl.concat([closed.select(columns), lots.select(columns)])
    first = entries.sort("entry_fill", maintain_order=True).row(0, named=True)
    quantity = sum(entries["quantity"].to_list())
    spent = sum((entries["quantity"] * entries["entry_price"]).to_list())
    held = lots.row(0, named=True)
    sign = SIGNS[held["side"]]
    return {
        **{name: held[name] for name in ("trip", "instrument", "side")},
        **{name: first[name] for name in ("entry_row", "entry_time", "entry_reason")},
        "quantity": quantity,
        "entry_price": spent / quantity,
        "first_price": first["entry_price"],
        "fee": sum(closed["fee"].to_list()) + sum(lots["fee"].to_list()),
        "bars": last - first["entry_row"],
        "realised": sum(closed["net"].to_list()),
        "unrealised": sum(
            sign * (mark - lot["entry_price"]) * lot["quantity"] - lot["fee"]
            for lot in lots.iter_rows(named=True)
        ),
    }
