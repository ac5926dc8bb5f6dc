"""What a file source says of bad input: every sentence names file, series and row."""

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.market.bars import explain, violations
from trade_pipeline.market.sources.base import SourceError, split_years
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline_tests.market.series import COLUMNS, MINUTE, START, crypto

HEADER = "ts,open,high,low,close,volume\n"
GOOD = HEADER + "".join(f"{START + n * MINUTE},2,4,1,3,10\n" for n in range(200))
HTML = b"<!DOCTYPE html><html>Please log in</html>"


def zipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bars.csv", text)
    return buffer.getvalue()


def row(**changes: Any) -> str:
    values = {"ts": START + MINUTE, "open": 2, "high": 4, "low": 1, "close": 3, "volume": 10}
    return ",".join(str(value) for value in (values | changes).values()) + "\n"


def read(tmp_path: Path, name: str, content: bytes | str, **changes: Any) -> Any:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    series = crypto(name, source=changes)
    return source_for(series).read(series, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "changes", "says"),
    [
        ("a.csv", "", {}, "the file is empty"),
        ("a.csv", " \n\n", {}, "the file is empty"),
        ("a.csv", HEADER, {}, "the file has no rows"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), {}, "the file is empty"),
        ("a.zip", zipped(""), {}, "the file is empty"),
        ("a.csv.gz", gzip.compress(GOOD.encode())[:-30], {}, "cannot be unpacked as .gz"),
        ("a.zip", zipped(GOOD)[:-30], {}, "cannot be unpacked as .zip"),
        ("a.zip", zipped(GOOD).replace(b"PK\x05\x06", b"XXXX"), {}, "cannot be unpacked as .zip"),
        ("a.zip", HTML, {}, "this is an HTML page"),
        ("a.csv.gz", HTML, {}, "this is an HTML page"),
        ("a.csv", HTML, {}, "this is an HTML page"),
        ("a.csv.gz", GOOD, {}, "cannot be unpacked as .gz"),
        ("a.csv", b"ts,open\n\xff\xfe,1\n", {}, "not readable as csv"),
        ("a.csv", GOOD + "1,2,3,4,5,6,7\n", {}, "row 202 has 7 fields and the first row 6"),
        ("a.csv", GOOD[:-4], {}, "row 201, the last one, has 5 fields and the first row 6; the "
         "file may still be being written"),
        ("a.csv", GOOD[:-10], {}, "row 201, the last one, has 2 fields"),
        ("a.csv", GOOD + str(START)[:4], {}, "row 202, the last one, has 1 fields"),
        ("a.csv", HEADER + f"{START},2", {}, "row 2, the last one, has 2 fields"),
        ("a.csv", GOOD[:-4] + "\r\n\n", {}, "row 201, the last one, has 5 fields"),
        ("a.csv.gz", gzip.compress(GOOD[:-4].encode()), {}, "row 201, the last one, has 5 fields"),
        ("a.csv", HEADER.replace(",", ";") + row().replace(",", ";")[:-4], {"delimiter": ";"},
         "row 2, the last one, has 5 fields"),
        ("a.parquet", b"PAR1 half a file", {"format": "parquet"}, "not readable as parquet"),
        ("a.csv", GOOD, {"columns": COLUMNS | {"close": "Close"}}, "no column 'Close', which "
         "columns.close asks for. Did you mean 'close'?"),
        ("a.csv", GOOD, {"columns": COLUMNS | {"close": 6}}, "columns.close is position 6, but "
         "the file has 6 columns"),
        ("a.csv", GOOD, {"header": False}, "A file without a header takes positions"),
        ("a.csv", GOOD, {"row_filter": {"tic": "X"}}, "no column 'tic', which row_filter asks for"),
        ("a.csv", GOOD, {"row_filter": {"open": "9"}}, "no row has open = '9' as row_filter asks"),
        ("a.csv", GOOD + row(close="abc") + row(close="x"), {}, "close is no number: found 'abc' "
         "in row 202; 2 such rows, the first of them"),
        ("a.csv", GOOD + row(volume="1,5"), {}, "row 202 has 7 fields"),
        ("a.csv", GOOD + row(ts="yesterday"), {}, "found 'yesterday' in row 202"),
        ("a.csv", GOOD + row(ts=""), {}, "found None in row 202"),
        ("a.csv", GOOD + row(ts=9 * 10**18), {}, "found '9000000000000000000' in row 202"),
        ("a.csv", GOOD + row(ts=-(2**63)), {"time_unit": "ms"}, "in row 202"),
        ("a.csv", GOOD + row(ts=-5), {}, "found '-5' in row 202"),
        ("a.csv", GOOD, {"time_unit": "s"}, "check time_unit"),
        ("a.csv", HEADER + row(ts=START * 1000 + 1), {"time_unit": "us"}, "in row 2"),
        ("a.csv", HEADER + row(ts=START * 10**6 + 1), {"time_unit": "ns"}, "in row 2"),
        ("a.csv", HEADER + row(ts="01/02/2018"), {"time_unit": "text"}, "found '01/02/2018'"),
        ("a.csv", HEADER + row(ts="2018-02-30"), {"time_unit": "text"}, "found '2018-02-30'"),
        ("a.csv", HEADER + row(ts="2018-01-01"), {"time_unit": "text", "time_format": "%Y-%Q"},
         "found '2018-01-01' in row 2"),
        ("a.csv", HEADER + row(ts="2018-11-04 01:30"),
         {"time_unit": "text", "timezone": "America/New_York"}, "exists once in America/New_York"),
        ("a.csv", HEADER + row(ts="2018-01-01"), {"time_unit": "text", "timezone": "Mars/Base"},
         "timezone 'Mars/Base'"),
        ("a.csv", GOOD, {"timezone": "Asia/Tokyo"}, "counts from 1970 in UTC"),
        ("a.csv", HEADER + row(ts=0), {"time_unit": "ms_of_day", "date_in_name": r"(\d{8})"},
         "finds no YYYYMMDD in the file's name"),
        ("20180101.csv", HEADER + row(ts=86_400_000),
         {"time_unit": "ms_of_day", "date_in_name": r"(\d{8})"}, "found '86400000' in row 2"),
        ("a.csv", GOOD, {"columns": COLUMNS | {"trades": "adj"}}, "no column 'adj'"),
        ("a.csv", HEADER + row(volume=1.5), {"columns": COLUMNS | {"trades": "volume"}},
         "trades is no count (a whole number below 2^31): found '1.5' in row 2"),
        ("a.csv", HEADER + row(close=0), {"columns": COLUMNS | {"adj_close": "open"}},
         "row 2, the series' first bar, has no positive close"),
        ("a.csv", HEADER + row(ts=1000), {}, "row 2 is of 1970-01-01, before first_year 2010"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_naming_file_and_series(
    tmp_path: Path, name: str, content: bytes | str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, name, content, **changes)
    message = str(caught.value)
    assert says in message
    assert message.startswith(f"{name}: series venue.BTC-USD.1m")


def test_a_last_line_without_an_end_is_whole_when_it_has_all_fields(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", GOOD[:-1]).bars.height == 200
    assert read(tmp_path, "a.csv", HEADER + row(volume='"10"')[:-1]).bars.height == 1


def test_an_encrypted_member_of_a_zip_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped(GOOD))
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(SourceError) as caught:
        read(tmp_path, "a.zip", bytes(content))
    assert str(caught.value).startswith("a.zip/bars.csv: series venue.BTC-USD.1m: this member")
    assert "is encrypted" in str(caught.value)


@pytest.mark.parametrize("path", ["absent.csv", "none_*.zip", "/nowhere/at/all.csv"])
def test_a_missing_file_is_an_error_naming_the_path(tmp_path: Path, path: str) -> None:
    series = crypto(path)
    with pytest.raises(SourceError) as caught:
        source_for(series).read(series, tmp_path)
    assert str(caught.value).startswith(f"{path}: series venue.BTC-USD.1m: no file matches")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (row(ts=START + 2 * MINUTE) + row(), [(3, "ts must not be before the row above")]),
        (row() + row(), [(3, "ts must be unique")]),
        (row(close="NaN"), [(2, "must not be null or NaN")]),
        (row(close=""), [(2, "must not be null or NaN")]),
        (row(close=0.5), [(2, "low must not be above close")]),
        (row(ts=START + 1), [(2, "ts must lie on the 1m grid of calendar 24/7")]),
        (row(open=0), [(2, "open must be positive"), (2, "low must not be above open")]),
        (f"{START},2,4\n" + row(), [(2, "must not be null or NaN")] * 3),
    ],
)
def test_what_reads_well_and_is_wrong_is_named_by_row(
    tmp_path: Path, rows: str, found: list[tuple[int, str]]
) -> None:
    given = read(tmp_path, "a.csv", HEADER + rows)
    table = violations(split_years(given, [2018])[2018].bars, crypto(), 2018)
    assert table.select("row", "rule").rows() == found
    text = explain(table, "venue.BTC-USD.1m", given.origin)
    assert text.startswith("series venue.BTC-USD.1m: ")
    assert f"a.csv, row {found[0][0]} (2018-01-01" in text


def test_bars_of_another_year_are_named(tmp_path: Path) -> None:
    given = read(tmp_path, "a.csv", GOOD)
    table = violations(given.bars, crypto(), 2019)
    assert table.height == 200
    assert table.row(0)[:2] == ("a.csv", 2)
    assert table["rule"].unique().to_list() == ["ts must lie in 2019"]


def test_an_adjusted_close_beside_raw_prices_is_named(shared_data: Path) -> None:
    series = crypto(
        "stocks_daily/finrl_dow29_20200701_20211027.csv.gz",
        source={
            "columns": COLUMNS | {"ts": "date"},
            "time_unit": "text",
            "row_filter": {"tic": "AAPL"},
        },
        timeframe="1d",
        calendar="XNYS",
        volume_unit="shares",
        first_year=2020,
    )
    given = source_for(series).read(series, shared_data)
    table = violations(given.bars, series, None)
    below = table.filter(table["rule"] == "low must not be above close")
    wrong = given.bars.filter(given.bars["close"] < given.bars["low"])
    assert below["row"].to_list() == wrong["row"].to_list()
    assert below["row"][:2].to_list() == [2, 31]  # every 29th row is Apple's
    assert explain(table, series.key, given.origin).startswith(
        "series venue.BTC-USD.1m: 201 violations; "
        "stocks_daily/finrl_dow29_20200701_20211027.csv.gz, row 2 (2020-07-01"
    )
