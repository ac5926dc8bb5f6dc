"""How many bytes each part of the store takes. Start at `usage`."""

import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from trade_pipeline.storage import layout

SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),  # ohlcv, manifest, features/<set>, experiment, other
    "name": pl.String(),  # of the series or the experiment
    "files": pl.Int64(),
    "bytes": pl.Int64(),
}
OTHER = ("other", "")


def usage(
    store: Path, series: Iterable[str], feature_sets: Iterable[str], experiments: Iterable[str]
) -> pl.DataFrame:
    """Files and bytes as listed in folders, one row a part; together all of the store.

    `other` is what belongs to no series or experiment of the configuration, such as verdicts,
    staging, and what was removed from it.

    Returns:
        `SCHEMA`; one row for each series and kind, each experiment, and the last for the rest.
    """
    owners: dict[Path, tuple[str, str]] = {}
    for key in series:
        owners[layout.ohlcv(store, key, 0).path.parent] = ("ohlcv", key)
        owners[layout.manifest(store, key).path] = ("manifest", key)
        for name in feature_sets:
            owners[layout.features(store, name, key).path] = (f"features/{name}", key)
    for name in experiments:
        home = layout.experiment_bundle(store, name, "dataset").path.parent
        owners[home] = ("experiment", name)
    taken = {owner: [0, 0] for owner in (*owners.values(), OTHER)}
    for folder, _, names in os.walk(store):
        path = Path(folder)
        owner = next((owners[one] for one in (path, *path.parents) if one in owners), OTHER)
        for name in names:
            try:
                size = (path / name).stat().st_size
            except FileNotFoundError:  # replaced meanwhile
                continue
            counts = taken[owners.get(path / name, owner)]
            counts[0] += 1
            counts[1] += size
    rows = [(*owner, *counts) for owner, counts in taken.items()]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
