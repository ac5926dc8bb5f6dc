"""What each check last said of each partition of `ohlcv`: kept beside the bars, absent when good.

A run sees only its own partitions, so an asset-level result is read from here. Start at `keep`
after a partition was imported, and at `standing` for all that still stands.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from trade_pipeline.market import quality
from trade_pipeline.market.stored import Partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import read_json, write_json

VALID, GAPS, OUTLIERS, DIFFERENCES = "valid_bars", "gaps", "outliers", "source_differences"
CHECKS = (VALID, GAPS, OUTLIERS, DIFFERENCES)
MOST_ROWS = 1_000

Rows = list[dict[str, str]]


def keep(
    store: Path, check: str, series: str, year: int, rows: Iterable[Mapping[str, object]]
) -> None:
    """Replace a partition's verdict: the first rows found, or nothing when there are none."""
    texts = [{name: str(value) for name, value in row.items()} for row in rows][:MOST_ROWS]
    location = layout.verdict(store, check, series, year)
    if texts:
        write_json(location, {"series": series, "year": year, "rows": texts})
    else:
        location.path.unlink(missing_ok=True)


def judge(store: Path, series: SeriesSettings, year: int, stored: Partition) -> tuple[int, int]:
    """Look for gaps and outliers in a partition and keep what is found; says how many of each."""
    holes = quality.gaps(stored.bars, stored.confirmed, series)
    jumps = quality.outliers(stored.bars, series)
    keep(store, GAPS, series.key, year, holes.to_dicts())
    keep(store, OUTLIERS, series.key, year, jumps.to_dicts())
    return holes.height, jumps.height


def read(store: Path, check: str, series: str, year: int) -> Rows:
    """Rows of one partition's verdict; none when it is good."""
    location = layout.verdict(store, check, series, year)
    rows: Rows = read_json(location)["rows"] if location.path.exists() else []
    return rows


def standing(store: Path, check: str, series: Iterable[str]) -> dict[str, Rows]:
    """Rows of every partition that the check does not pass, by `<series>|<year>`."""
    found = {}
    for key in series:
        folder = layout.verdict(store, check, key, 0).path.parent
        for path in sorted(folder.glob("*.json")):
            found[f"{key}|{path.stem}"] = read(store, check, key, int(path.stem))
    return found
