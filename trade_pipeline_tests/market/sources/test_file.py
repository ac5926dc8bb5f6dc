import gzip
import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.market.bars import violations
from trade_pipeline.market.coverage import coverage
from trade_pipeline.market.sources.base import SourceBars
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline_tests.market.series import COLUMNS, DAY, MINUTE, START, crypto, ms

POSITIONS = {name: position for position, name in enumerate(COLUMNS)}
LEAN = {
    "header": False,
    "columns": POSITIONS,
    "time_unit": "ms_of_day",
    "date_in_name": r"(\d{8})",
}
HEADER = "ts,open,high,low,close,volume\n"


def read(series: SeriesSettings, base: Path) -> SourceBars:
    return source_for(series).read(series, base)


def lines(*times: object) -> str:
    return "".join(f"{time},2,4,1,3,10\n" for time in times)


def zipped(**tables: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in tables.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_coinbase_day_declared_quiet_is_quiet_only_up_to_its_last_bar(shared_data: Path) -> None:
    path = "lean_crypto/coinbase_minute_btcusd_20180404_trade.zip"
    series = crypto(path, source=LEAN | {"missing_bars": "quiet"})
    given = read(series, shared_data)
    assert violations(given.bars, series, 2018).is_empty()
    # The file stops at 16:47: whether it was cut off there nobody knows.
    assert given.confirmed == ((ms(2018, 4, 4), ms(2018, 4, 4, 16, 48)),)
    found = coverage(given.stored, given.confirmed, series)
    assert found.days.select("expected", "traded", "quiet", "unknown", "good").rows() == [
        (1440, 1007, 1, 432, False)
    ]
    assert found.slices == ()


def test_the_same_day_unconfirmed_has_433_unknown_minutes_and_is_excluded(
    shared_data: Path,
) -> None:
    path = "lean_crypto/coinbase_minute_btcusd_20180404_trade.zip"
    series = crypto(path, source=LEAN | {"missing_bars": "unknown"})
    given = read(series, shared_data)
    found = coverage(given.stored, given.confirmed, series)
    assert found.days.select("traded", "quiet", "unknown", "good").row(0) == (1007, 0, 433, False)
    assert found.days["reason"][0].startswith("433 of 1440 bars are unknown")
    assert found.slices == ()


def test_several_files_follow_each_other_by_name(shared_data: Path) -> None:
    series = crypto("lean_crypto/coinbase_minute_btcusd_2016*.zip", source=LEAN)
    given = read(series, shared_data)
    assert violations(given.bars, series, 2016).is_empty()
    assert given.origin.endswith("_20161009_trade.zip (3 files)")
    days = coverage(given.stored, given.confirmed, series).days
    assert days["traded"].to_list() == [1419, 1400, 1397]


def test_the_ftx_month_is_one_slice_of_31_good_days(shared_data: Path) -> None:
    columns = COLUMNS | {"ts": "timestamp"}
    series = crypto(
        "crypto_1m/ftx_btc_perp_1m_20211231_20220201.csv.gz",
        source={"columns": columns, "time_unit": "text"},
        volume_unit="quote",
    )
    given = read(series, shared_data)
    assert given.bars.height == 45_031
    assert violations(given.bars, series, None).is_empty()
    found = coverage(given.stored, given.confirmed, series)
    assert found.days["good"].sum() == 31
    (one,) = found.slices
    assert (one.start_ms, one.days, one.rows) == (ms(2022, 1, 1), 31, 31 * 1440)
    assert found.days.filter(~pl.col("good"))["unknown"].to_list() == [1381, 1108]


def test_lean_stock_prices_are_scaled(shared_data: Path) -> None:
    series = crypto(
        "lean_equity_daily/aapl.zip",
        source={
            "header": False,
            "columns": POSITIONS,
            "time_unit": "text",
            "time_format": "%Y%m%d %H:%M",
            "timezone": "America/New_York",
            "price_scale": 10_000,
        },
        timeframe="1d",
        calendar="XNYS",
        first_year=1998,
        volume_unit="shares",
    )
    given = read(series, shared_data)
    # New York's dates stay dates: a daily bar is stamped with its session's date at 00:00Z.
    assert given.bars.row(0)[:6] == (
        datetime(1998, 1, 2, tzinfo=UTC), 13.63, 16.25, 13.5, 16.25, 6_315_000.0
    )  # fmt: skip
    assert violations(given.bars, series, None).is_empty()


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"time_unit": "s"}, (START // 1000, START // 1000 + 60)),
        ({"time_unit": "ms"}, (START, START + MINUTE)),
        ({"time_unit": "us"}, (START * 1000, (START + MINUTE) * 1000)),
        ({"time_unit": "ns"}, (START * 10**6, (START + MINUTE) * 10**6)),
        ({"time_unit": "text"}, ("2018-01-01", "2018-01-01T00:01Z")),
        ({"time_unit": "text"}, ("2018-01-01 00:00:00.000000", " 2018-01-01T00:01:00 ")),
        ({"time_unit": "text"}, ("2018-01-01 02:00:00+02:00", "2017-12-31T19:01:00-0500")),
        (
            {"time_unit": "text", "timezone": "Asia/Tokyo"},
            ("2018-01-01 09:00", "2018-01-01T00:01:00Z"),
        ),
        (
            {"time_unit": "text", "time_format": "%d.%m.%Y %H:%M"},
            ("01.01.2018 00:00", "01.01.2018 00:01"),
        ),
        (
            {"time_unit": "text", "time_format": "%d.%m.%Y %H:%M %z"},
            ("01.01.2018 01:00 +0100", "01.01.2018 00:01 +0000"),
        ),
    ],
)
def test_times_are_read_in_their_unit_and_zone(
    tmp_path: Path, changes: dict[str, Any], times: tuple[object, object]
) -> None:
    (tmp_path / "bars.csv").write_text(HEADER + lines(*times))
    given = read(crypto(source=changes), tmp_path)
    assert given.bars["ts"].dt.epoch("ms").to_list() == [START, START + MINUTE]


def test_local_times_follow_summer_time(tmp_path: Path) -> None:
    text = HEADER + lines("2018-03-10 12:00", "2018-03-12 12:00")
    (tmp_path / "bars.csv").write_text(text)
    zone = {"time_unit": "text", "timezone": "America/New_York"}
    hours = read(crypto(source=zone), tmp_path).bars["ts"].dt.hour()
    assert hours.to_list() == [17, 16]


def test_a_daily_sessions_offset_does_not_move_its_date(tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text(HEADER + lines("2018-07-02 00:00:00-04:00"))
    daily = {"timeframe": "1d", "calendar": "XNYS", "source": {"time_unit": "text"}}
    given = read(crypto(**daily), tmp_path)
    assert given.bars["ts"].dt.epoch("ms").to_list() == [ms(2018, 7, 2)]


def test_plain_gzip_zip_and_parquet_give_the_same_bars(tmp_path: Path) -> None:
    text = HEADER + lines(START, START + MINUTE)
    (tmp_path / "bars.csv").write_text(text)
    (tmp_path / "bars.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "bars.zip").write_bytes(zipped(**{"inside.csv": text}))
    pl.read_csv(text.encode()).write_parquet(tmp_path / "bars.parquet")
    pl.read_csv(text.encode()).with_columns(
        pl.from_epoch("ts", time_unit="ms").dt.replace_time_zone("UTC")
    ).write_parquet(tmp_path / "typed.parquet")
    frames = [
        read(crypto(name, source={"format": kind}), tmp_path).stored
        for name, kind in [
            ("bars.csv", "csv"),
            ("bars.csv.gz", "csv"),
            ("bars.zip", "csv"),
            ("bars.parquet", "parquet"),
            ("typed.parquet", "parquet"),
        ]
    ]
    assert frames[0].height == 2
    assert all(frame.equals(frames[0]) for frame in frames)


def test_members_of_a_zip_are_read_by_name_and_named_in_rows(tmp_path: Path) -> None:
    tables = {"b.csv": HEADER + lines(START + MINUTE), "a.csv": HEADER + lines(START)}
    (tmp_path / "bars.zip").write_bytes(zipped(**tables))
    bars = read(crypto("bars.zip", source={"missing_bars": "quiet"}), tmp_path).bars
    assert bars.select("file", "row").rows() == [("bars.zip/a.csv", 2), ("bars.zip/b.csv", 2)]


def test_quiet_is_confirmed_from_the_first_bar_to_the_end_of_the_last(tmp_path: Path) -> None:
    for day in (0, 2):
        times = (START + day * DAY + minute * MINUTE for minute in (3, 9))
        (tmp_path / f"bars_{day}.csv").write_text(HEADER + lines(*times))
    given = read(crypto("bars_*.csv", source={"missing_bars": "quiet"}), tmp_path)
    span = (START + 3 * MINUTE, START + 10 * MINUTE)
    assert given.confirmed == (span, (span[0] + 2 * DAY, span[1] + 2 * DAY))
    assert read(crypto("bars_*.csv"), tmp_path).confirmed == ()


def test_a_day_file_of_local_time_lands_on_its_utc_minutes(tmp_path: Path) -> None:
    (tmp_path / "x_20180101.csv").write_text(lines(0, 7 * MINUTE))
    changes = LEAN | {"missing_bars": "quiet", "timezone": "Asia/Tokyo"}
    given = read(crypto("x_*.csv", source=changes), tmp_path)
    assert given.confirmed == ((ms(2017, 12, 31, 15), ms(2017, 12, 31, 15, 8)),)
    assert given.bars["ts"].dt.epoch("ms").to_list() == [
        ms(2017, 12, 31, 15), ms(2017, 12, 31, 15, 7)
    ]  # fmt: skip


def test_rows_are_filtered_and_keep_their_numbers_past_blank_lines(tmp_path: Path) -> None:
    text = "tic," + HEADER + f"A,{lines(START)}B,{lines(START)}\nA,{lines(START + MINUTE)}\n"
    (tmp_path / "bars.csv").write_text(text)
    bars = read(crypto(source={"row_filter": {"tic": "A"}}), tmp_path).bars
    assert bars["row"].to_list() == [2, 5]


def test_trades_and_adjusted_close_are_taken_over(tmp_path: Path) -> None:
    text = "ts;open;high;low;close;volume;n;adj\n"
    text += f"{START};2;4;1;4;10;7;1\n{START + MINUTE};2;4;1;2;10;;1\n"
    (tmp_path / "bars.csv").write_text(text)
    columns = COLUMNS | {"trades": "n", "adj_close": 7}
    given = read(crypto(source={"columns": columns, "delimiter": ";"}), tmp_path)
    assert given.bars["trades"].to_list() == [7, None]
    assert given.bars["adj_factor"].to_list() == [1.0, 2.0]
    assert given.notes


@pytest.mark.parametrize(("names", "factors"), [("ab", [1.0, 4.0]), ("abc", [1.0, 2.0])])
def test_the_factor_is_anchored_at_the_earliest_bar_that_counts(
    tmp_path: Path, names: str, factors: list[float]
) -> None:
    files = {"a": (START + DAY, 6), "b": (START, 1.5), "c": (START, 3)}
    for name in names:
        time, adjusted = files[name]
        text = f"ts,open,high,low,close,volume,adj\n{time},2,4,1,3,10,{adjusted}\n"
        (tmp_path / f"{name}.csv").write_text(text)
    given = read(crypto("*.csv", source={"columns": COLUMNS | {"adj_close": "adj"}}), tmp_path)
    assert given.bars["adj_factor"].to_list() == factors


def test_scaled_prices_are_the_decimal_ones_to_the_last_bit(tmp_path: Path) -> None:
    # 1219600 times the reciprocal of 10,000 is not 121.96.
    prices = [1219600, 1210300, 1234567]
    rows = "".join(f"{START + n * MINUTE},{p},{p},{p},{p},1\n" for n, p in enumerate(prices))
    (tmp_path / "bars.csv").write_text(HEADER + rows)
    given = read(crypto(source={"price_scale": 10_000}), tmp_path)
    assert given.bars["close"].to_list() == [121.96, 121.03, 123.4567]
