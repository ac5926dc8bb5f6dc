import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.features.registry import FeatureSet, Indicator, Member, resolve
from trade_pipeline.features.table import FeatureError, feature_table
from trade_pipeline.settings.base import Settings, read_settings
from trade_pipeline.settings.features import FeatureSetSettings

CONFIGS = Path(__file__).parents[2] / "configs" / "features"
DAILY = resolve(read_settings(CONFIGS / "daily.yaml", FeatureSetSettings), "daily.yaml")
BYTES_PROGRAM = """
import sys
import polars as pl
from trade_pipeline_tests.features.test_table import DAILY, digest
from trade_pipeline.features.table import feature_table
bars = pl.read_parquet(sys.argv[1])
print(pl.thread_pool_size(), digest(feature_table([bars], DAILY)))
"""


def digest(table: pl.DataFrame) -> str:
    """SHA-256 of a table's column buffers."""
    hashed = hashlib.sha256()
    for column in table:
        hashed.update(column.to_physical().to_numpy().tobytes())
    return hashed.hexdigest()


def test_a_table_has_times_and_finite_float32_columns(apple: pl.DataFrame) -> None:
    table = feature_table([apple], DAILY)
    assert table.schema == {"ts": apple.schema["ts"]} | dict.fromkeys(DAILY.names, pl.Float32)
    assert table["ts"].equals(apple["ts"].slice(DAILY.lookback))
    assert np.isfinite(table.drop("ts").to_numpy()).all()


def test_each_segment_stands_alone(apple: pl.DataFrame) -> None:
    lookback = DAILY.lookback
    segments = [
        apple.slice(0, 500),
        apple.slice(500, lookback),
        apple.slice(700, lookback + 1),
        apple.slice(1_000, 0),
        apple.slice(2_000, 300),
    ]
    alone = [feature_table([segment], DAILY) for segment in segments]
    assert [table.height for table in alone] == [500 - lookback, 0, 1, 0, 300 - lookback]
    assert_frame_equal(feature_table(segments, DAILY), pl.concat(alone), check_exact=True)


def test_no_segments_and_only_short_ones_give_an_empty_table(apple: pl.DataFrame) -> None:
    for segments in ([], [apple.head(DAILY.lookback)]):
        table = feature_table(segments, DAILY)
        assert table.is_empty()
        assert table.columns == ["ts", *DAILY.names]


def test_bytes_are_the_same_with_any_number_of_threads(apple: pl.DataFrame, tmp_path: Path) -> None:
    bars = tmp_path / "bars.parquet"
    apple.write_parquet(bars)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BYTES_PROGRAM, str(bars)],
            env={**os.environ, "POLARS_MAX_THREADS": threads},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "2", "4")
    ]
    printed = [process.communicate()[0].split() for process in running]
    expected = digest(feature_table([apple], DAILY))
    assert printed == [["1", expected], ["2", expected], ["4", expected]]
    again = feature_table([pl.concat([apple.head(100), apple.slice(100)], rechunk=False)], DAILY)
    assert digest(again) == expected


def test_a_hole_in_the_bars_is_named(apple: pl.DataFrame) -> None:
    for hole, word in ((None, "None"), (float("nan"), "nan")):
        broken = apple.with_row_index().with_columns(
            close=pl.when(pl.col("index") == 300).then(hole).otherwise("close")
        )
        with pytest.raises(FeatureError, match=rf"segment 1, row 300 \(2001-.*\): close is {word}"):
            feature_table([apple.head(0), broken], DAILY)


def test_bars_out_of_order_are_named(apple: pl.DataFrame) -> None:
    with pytest.raises(FeatureError, match=r"segment 0, row 1: ts 2013-.* follows 2013-"):
        feature_table([apple.reverse()], DAILY)
    with pytest.raises(FeatureError, match="the segments together, row 113"):
        feature_table([apple.head(300), apple.head(300)], DAILY)


class NoParameters(Settings):
    """None."""


def plug_in(outputs: tuple[str, ...], lookback: int) -> FeatureSet:
    """A set of one indicator that gives `lagged`, which needs three bars before its own."""

    def lagged(bars: dict[str, np.ndarray], _: NoParameters) -> dict[str, np.ndarray]:
        return {"lagged": np.concatenate([np.full(3, np.nan), bars["close"][:-3]])}

    indicator = Indicator(
        "lag", NoParameters, ("close",), lambda _: outputs, lambda _: lookback, lagged
    )
    return FeatureSet((Member(indicator, NoParameters()),), "none")


def test_an_indicator_that_breaks_its_declaration_is_named(apple: pl.DataFrame) -> None:
    assert feature_table([apple], plug_in(("lagged",), 3)).height == apple.height - 3
    with pytest.raises(FeatureError, match=r"row 1 .*: lagged is nan.* indicator 'lag'"):
        feature_table([apple], plug_in(("lagged",), 1))
    with pytest.raises(FeatureError, match=r"indicator 'lag' gave .* declares \['late'\]"):
        feature_table([apple], plug_in(("late",), 3))
