"""What Kraken's archives give, and what is said of archives that are not what they should be."""

import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import ccxt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market.bars import BAR_SCHEMA, violations
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.resample import resample_ms
from trade_pipeline.market.sources import archive
from trade_pipeline.market.sources.base import SourceBars, SourceError, Surroundings
from trade_pipeline.market.sources.kraken_archive import (
    ALTNAME_CODES,
    altname_of,
    covered,
    ohlcvt_bars,
    time_and_sales_bars,
)
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings

from ..series import MINUTE, START, bars_at, minutes

SECOND = START // 1000
KEY = "kraken.BTC-USD.1m"
GOOD = f"{SECOND},2,4,1,3,10,7\n{SECOND + 60},2,4,1,3,10,7\n"
SALES = f"{SECOND},2,1\n{SECOND + 60},2,1\n{SECOND + 120},2,1\n"


def kraken(timeframe: str = "1m", **source: Any) -> SeriesSettings:
    return SeriesSettings.model_validate(
        {
            "key": f"kraken.BTC-USD.{timeframe}",
            "source": {"kind": "kraken", "symbol": "BTC/USD", **source},
            "timeframe": timeframe,
            "first_year": 2013,
            "volume_unit": "base",
        }
    )


def around(base: Path, lines: list[str] | None = None) -> Surroundings:
    log = lines if lines is not None else []
    return Surroundings(base, base / "store", {}, lambda: START, lambda seconds: None, log.append)


def pack(path: Path, *members: tuple[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for inside, text in members:
            packed.writestr(inside, text)
    return path


def ohlcvt(base: Path, pattern: str = "a.zip", timeframe: str = "1m") -> list[SourceBars]:
    return list(ohlcvt_bars(pattern, "XBTUSD", kraken(timeframe), around(base)))


def sales(base: Path, pattern: str = "a.zip", timeframe: str = "1m") -> list[SourceBars]:
    return list(time_and_sales_bars(pattern, "XBTUSD", kraken(timeframe), around(base)))


def ohlcvt_text(bars: pl.DataFrame) -> str:
    prices = ("open", "high", "low", "close", "volume")
    columns = (pl.col("ts").dt.epoch("s"), *prices, pl.col("trades").fill_null(1))
    return bars.select(columns).write_csv(include_header=False)


def one(*batches: SourceBars) -> SourceBars:
    (batch,) = batches
    return batch


# OHLCVT


@st.composite
def stored_bars(draw: st.DrawFn) -> pl.DataFrame:
    price = st.floats(1e-8, 1e9, allow_nan=False)
    amount = st.floats(0, 1e12, allow_nan=False)
    bars = [
        (START + at * MINUTE, low, *sorted(draw(st.tuples(price, price)), reverse=True), volume, n)
        for at in sorted(draw(st.sets(st.integers(0, 2_000), min_size=1, max_size=30)))
        for low, volume, n in [draw(st.tuples(price, amount, st.integers(0, 2**31 - 1)))]
    ]
    rows = [
        {
            "ts": ts,
            "open": first,
            "high": max(first, second, third),
            "low": min(first, second, third),
            "close": third,
            "volume": volume,
            "trades": n,
            "adj_factor": None,
            "source": "zip",
        }
        for ts, first, second, third, volume, n in bars
    ]
    frame = pl.DataFrame(rows, schema_overrides={"adj_factor": pl.Float64})
    return frame.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


@given(bars=stored_bars(), block=st.integers(1, 300))
def test_bars_written_as_an_archive_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, bars: pl.DataFrame, block: int
) -> None:
    base = tmp_path_factory.mktemp("archive")
    pack(base / "a.zip", ("XBTUSD_1.csv", ohlcvt_text(bars)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "BLOCK_BYTES", block)
        given_ = one(*ohlcvt(base))
    assert given_.stored.equals(bars)
    assert given_.bars["row"].to_list() == list(range(1, bars.height + 1))
    first, last = bars["ts"].dt.epoch("ms")[0], bars["ts"].dt.epoch("ms")[-1]
    assert given_.confirmed == ((first, last + MINUTE),)


def test_only_the_pairs_member_is_read_in_whatever_folder_it_is(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "a.zip",
        ("Kraken/XBTEUR_1.csv", "another pair " * 100),
        ("Kraken/XBTUSD_1.csv", GOOD),
        ("Kraken/XBTUSD_60.csv", "bars with missing days"),
        ("Kraken/xbtusd_1.csv", "another case"),
    )
    content = bytearray(path.read_bytes())
    at = content.index(b"XBTEUR_1.csv") + len("XBTEUR_1.csv")
    content[at : at + 20] = b"\0" * 20  # unpacking the other pair would fail
    path.write_bytes(content)
    batch = one(*ohlcvt(tmp_path))
    assert batch.stored.height == 2
    assert batch.bars["source"].to_list() == ["zip", "zip"]
    assert batch.bars["trades"].to_list() == [7, 7]
    assert batch.origin == "a.zip/Kraken/XBTUSD_1.csv"


def test_archives_come_in_the_order_of_their_names_one_batch_each(tmp_path: Path) -> None:
    for name, at in (("b_2018Q2.zip", 5), ("a_full.zip", 0), ("b_2018Q1.zip", 3)):
        pack(tmp_path / name, ("XBTUSD_1.csv", ohlcvt_text(bars_at(minutes(at, at + 2)))))
    pack(tmp_path / "c_2018Q3.zip.crdownload", ("XBTUSD_1.csv", GOOD))
    batches = ohlcvt(tmp_path, "*.zip*")
    assert [batch.origin.split("/")[0] for batch in batches] == [
        "a_full.zip", "b_2018Q1.zip", "b_2018Q2.zip"
    ]  # fmt: skip
    span = [(START + at * MINUTE, START + (at + 3) * MINUTE) for at in (0, 3, 5)]
    assert [batch.confirmed for batch in batches] == [(one,) for one in span]


def test_an_archive_from_before_the_pair_was_listed_is_noted_and_passed_over(
    tmp_path: Path,
) -> None:
    pack(tmp_path / "a.zip", ("ETHUSD_1.csv", GOOD))
    pack(tmp_path / "b.zip", ("XBTUSD_1.csv", GOOD))
    lines: list[str] = []
    batches = list(ohlcvt_bars("*.zip", "XBTUSD", kraken(), around(tmp_path, lines)))
    assert [batch.origin for batch in batches] == ["b.zip/XBTUSD_1.csv"]
    assert lines == [f"{KEY}: a.zip has no member XBTUSD_1.csv; the other archives have"]


def test_hours_are_made_of_minutes_and_only_complete_ones(tmp_path: Path) -> None:
    bars = bars_at(minutes(*range(30, 100), *range(110, 200)), source="zip", trades=2)
    wrong_hours = ohlcvt_text(bars_at([START, START + 60 * MINUTE]))
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", ohlcvt_text(bars)), ("XBTUSD_60.csv", wrong_hours))
    batch = one(*ohlcvt(tmp_path, timeframe="1h"))
    span = (START + 30 * MINUTE, START + 200 * MINUTE)
    hours, complete = resample_ms(bars, [span], KEY, "24/7", MINUTE, 60 * MINUTE)
    assert batch.stored.equals(hours)
    assert batch.stored["ts"].dt.epoch("ms").to_list() == minutes(60, 120)
    assert batch.stored["trades"].to_list() == [100, 120]
    assert batch.confirmed == tuple(complete) == ((START + 60 * MINUTE, START + 180 * MINUTE),)
    assert "1h bars are made of the one-minute bars of a.zip/XBTUSD_1.csv" in batch.notes[0]


@pytest.mark.parametrize(
    ("order", "row", "rule"),
    [((0, 2, 1), 3, "ts must not be before the row above"), ((0, 1, 1), 3, "ts must be unique")],
)
def test_rows_out_of_order_or_repeated_are_named(
    tmp_path: Path, order: tuple[int, ...], row: int, rule: str
) -> None:
    text = "".join(f"{SECOND + 60 * at},2,4,1,3,10,7\n" for at in order)
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", text))
    bad = violations(one(*ohlcvt(tmp_path)).bars, kraken(), 2018)
    assert bad.select("file", "row", "rule").rows() == [("a.zip/XBTUSD_1.csv", row, rule)]
    with pytest.raises(SourceError, match=f"a.zip/XBTUSD_1.csv, row {row} .*{rule}"):
        ohlcvt(tmp_path, timeframe="1h")


# Time and sales


def oracle(trades: list[tuple[Decimal, str, str]], length_ms: int) -> list[tuple[Any, ...]]:
    """Bars of all intervals but the first and last: slow, exact, in plain Python."""
    groups = [
        (interval, list(group))
        for interval, group in itertools.groupby(trades, lambda one: one[0] * 1000 // length_ms)
    ]
    found = []
    for interval, group in groups[1:-1]:
        prices = [float(price) for _, price, _ in group]
        volume = float(sum(Decimal(volume) for _, _, volume in group))
        bar = (prices[0], max(prices), min(prices), prices[-1], volume, len(group))
        found.append((int(interval) * length_ms, *bar))
    return found


def decimals(most: int, places: int, least: int = 0) -> st.SearchStrategy[str]:
    numbers = st.integers(least, most * 10**places)
    return numbers.map(lambda number: f"{Decimal(number).scaleb(-places):f}")


@st.composite
def single_trades(draw: st.DrawFn, places: int = 8) -> list[tuple[Decimal, str, str]]:
    at, trades = Decimal(SECOND), []
    price, volume = decimals(100_000, 5, least=1), decimals(10_000, places)
    for _ in range(draw(st.integers(1, 40))):
        at += draw(
            st.sampled_from(["0", "0", "0.0000001", "1", "7.5", "61", "150.9999999"]).map(Decimal)
        )
        trades.append((at, draw(price), draw(volume)))
    return trades


def sales_text(trades: list[tuple[Decimal, str, str]]) -> str:
    return "".join(f"{time},{price},{volume}\n" for time, price, volume in trades)


@settings(max_examples=50)
@given(trades=single_trades(), timeframe=st.sampled_from(["1m", "5m"]), block=st.integers(1, 400))
def test_bars_of_trades_equal_the_oracles(
    tmp_path_factory: pytest.TempPathFactory,
    trades: list[tuple[Decimal, str, str]],
    timeframe: str,
    block: int,
) -> None:
    base, length = tmp_path_factory.mktemp("archive"), TIMEFRAME_MS[timeframe]
    pack(base / "a.zip", ("T/XBTUSD.csv", sales_text(trades)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "BLOCK_BYTES", block)
        batch = one(*sales(base, timeframe=timeframe))
    expected = oracle(trades, length)
    ts = batch.bars["ts"].dt.epoch("ms")
    columns = ["open", "high", "low", "close", "volume", "trades"]
    assert batch.bars.select(ts, *columns).rows() == expected
    first, last = (int(time * 1000 // length) for time in (trades[0][0], trades[-1][0]))
    whole = ((first + 1) * length, last * length)
    assert batch.confirmed == ((whole,) if whole[0] < whole[1] else ())
    assert violations(batch.bars, kraken(timeframe), 2018).is_empty()


@settings(max_examples=30)
@given(trades=single_trades(places=14), blocks=st.sets(st.integers(1, 900), min_size=1, max_size=3))
def test_how_a_member_is_cut_into_blocks_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory,
    trades: list[tuple[Decimal, str, str]],
    blocks: set[int],
) -> None:
    base = tmp_path_factory.mktemp("archive")
    pack(base / "a.zip", ("XBTUSD.csv", sales_text(trades)))
    whole = one(*sales(base))
    for block in blocks:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "BLOCK_BYTES", block)
            batch = one(*sales(base))
        assert batch.bars.equals(whole.bars)
        assert batch.confirmed == whole.confirmed


def test_trades_that_look_the_same_are_all_counted(tmp_path: Path) -> None:
    twice = f"{SECOND + 60},2,1.5\n" * 2
    pack(tmp_path / "a.zip", ("XBTUSD.csv", f"{SECOND},2,1\n{twice}{SECOND + 120},2,1\n"))
    batch = one(*sales(tmp_path))
    assert batch.bars.select("volume", "trades", "source").rows() == [(3.0, 2, "zip")]


def test_a_fraction_of_a_second_before_the_minute_stays_before_it(tmp_path: Path) -> None:
    # As a float this time is the next minute's first instant.
    last = f"{SECOND + 119}.99999999"
    assert float(last) == SECOND + 120
    text = f"{SECOND},2,1\n{SECOND + 60},2,1\n{last},3,1\n{SECOND + 120},5,1\n{SECOND + 180},5,1\n"
    pack(tmp_path / "a.zip", ("XBTUSD.csv", text))
    assert one(*sales(tmp_path)).bars["close"].to_list() == [3.0, 5.0]


def test_a_member_within_two_minutes_confirms_nothing(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", ("XBTUSD.csv", f"{SECOND},2,1\n{SECOND + 119},2,1\n"))
    batch = one(*sales(tmp_path))
    assert (batch.bars.height, batch.confirmed) == (0, ())
    assert dict(batch.bars.schema) == BAR_SCHEMA


# What is refused


def encrypt(path: Path, member: str) -> None:
    """Set the flag of encryption on the only member, in both of its headers."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def damage(path: Path, member: str) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(member.encode()) + len(member) + 20] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path, member: str) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def instead(content: bytes) -> Callable[[Path, str], None]:
    return lambda path, member: path.write_bytes(content) and None


def packed(*members: tuple[str, str]) -> Callable[[Path, str], None]:
    return lambda path, member: (
        pack(path, *((inside.format(member), text) for inside, text in members)) and None
    )


A_PAGE = "the download page was saved instead of the archive"
BROKEN = {
    "html": (instead(b"\n<!DOCTYPE html><html>confirm</html>"), "a.zip", A_PAGE),
    "large html": (instead(b"<html>" + b" " * (11 << 20)), "a.zip", A_PAGE),
    "a short text": (instead(b"Quota exceeded"), "a.zip", A_PAGE),
    "large and no zip": (instead(b"\x1f\x8b" * (6 << 20)), "a.zip", "this is no ZIP"),
    "empty": (instead(b""), "a.zip", "the file is empty"),
    "truncated": (cut, "a.zip", "not downloaded to its end"),
    "damaged": (damage, "a.zip/{}", "it is damaged"),
    "encrypted": (encrypt, "a.zip/{}", "is encrypted"),
    "an empty member": (packed(("{}", "")), "a.zip/{}", "is empty"),
    "twice": (packed(("x/{}", GOOD), ("y/{}", GOOD)), "a.zip", "2 times (x/{}, y/{})"),
    "binary": (packed(("{}", "\0" * 70_000)), "a.zip/{}", "longer than 65536 bytes"),
}


@pytest.mark.parametrize("read", [ohlcvt, sales])
@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_is_none_is_refused_with_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    read: Callable[[Path], list[SourceBars]],
) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", 1 << 16)
    spoil, named, says = BROKEN[case]
    member, text = ("XBTUSD_1.csv", GOOD) if read is ohlcvt else ("XBTUSD.csv", SALES)
    spoil(pack(tmp_path / "a.zip", (member, text)), member)
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{named.format(member)}: series {KEY}: ")
    assert says.format(member, member) in message


def test_an_archive_without_the_pair_is_refused_with_the_closest_members(tmp_path: Path) -> None:
    names = ("Kraken/XBTEUR_1.csv", "Kraken/xbtusd_1.csv", "Kraken/ADAETH_1.csv")
    pack(tmp_path / "a.zip", *((name, GOOD) for name in names))
    with pytest.raises(SourceError) as caught:
        ohlcvt(tmp_path)
    assert str(caught.value).startswith(
        f"a.zip: series {KEY}: no member XBTUSD_1.csv, which pair XBTUSD would be in; "
        "the closest members are xbtusd_1.csv, XBTEUR_1.csv"
    )


def test_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip.part", ("XBTUSD_1.csv", GOOD))
    with pytest.raises(SourceError, match=r"no file matches .*a\.zip\.part: hidden"):
        ohlcvt(tmp_path, "*.zip*")


def test_a_member_compressed_beyond_belief_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LARGE_BYTES", 1 << 20)
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", GOOD[: GOOD.index("\n") + 1] * 100_000))
    with pytest.raises(SourceError, match="more than 200 times as many"):
        ohlcvt(tmp_path)
    prices = [f"{SECOND + 60 * at},{at % 977}.{at},4,1,3,10,7\n" for at in range(60_000)]
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", "".join(prices)))
    assert one(*ohlcvt(tmp_path)).bars.height == 60_000


def test_all_archives_are_opened_before_the_first_batch(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", GOOD))
    (tmp_path / "b.zip").write_bytes(b"<html>")
    with pytest.raises(SourceError, match=r"^b.zip: "):
        next(ohlcvt_bars("*.zip", "XBTUSD", kraken(), around(tmp_path)))


NOT_7 = "is not the 7 numbers unix_s, open, high, low, close, volume, trades"


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("abc,2,4,1,3,10,7", NOT_7),
        (f"{SECOND + 120},2,4,x,3,10,7", NOT_7),
        (f"{SECOND + 120},2,4,1,3,10,7,8", NOT_7),
        (f"{SECOND + 120},2,4,1,3,10", NOT_7),
        (f"{SECOND + 120},2,4,1,3,10,", NOT_7),
        (f"{SECOND + 120},2,4,1,3,10,1.5", NOT_7),
        (f"{SECOND + 120}.5,2,4,1,3,10,7", NOT_7),
        (f'"{SECOND + 120}",2,4,1,3,10,7', NOT_7),
        ("", NOT_7),
        (f"{SECOND + 120}000,2,4,1,3,10,7", "has no time in seconds since 1970"),
        ("0,2,4,1,3,10,7", "has no time in seconds since 1970"),
        (f"{SECOND - 60},2,4,1,3,10,7", "is of a year before the last"),
    ],
)
def test_a_row_that_is_no_bar_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str, block: int
) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", block)
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", f"{GOOD}{line}\n{GOOD}"))
    with pytest.raises(SourceError) as caught:
        ohlcvt(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"a.zip/XBTUSD_1.csv: series {KEY}: row 3 {says}")
    assert says != NOT_7 or f"found {line!r}" in message


def test_a_header_is_refused_as_row_one(tmp_path: Path) -> None:
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", f"time,open,high,low,close,volume,count\n{GOOD}"))
    with pytest.raises(SourceError, match=f"row 1 {NOT_7}"):
        ohlcvt(tmp_path)


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("abc,2,1", "is not the 3 numbers unix_s, price, volume"),
        (f"{SECOND + 120},2", "is not the 3 numbers"),
        (f"{SECOND + 120},2,1,b", "is not the 3 numbers"),
        ("", "is not the 3 numbers"),
        (f"{SECOND + 120}000,2,1", "has no time in seconds since 1970"),
        (f"{SECOND + 120},0,1", "has no positive price: found '0.0'"),
        (f"{SECOND + 120},-2,1", "has no positive price"),
        (f"{SECOND + 120},NaN,1", "has no positive price"),
        (f"{SECOND + 120},inf,1", "has no positive price"),
        (f"{SECOND + 120},2,-1", "has no volume of 0 or more"),
        (f"{SECOND + 120},2,NaN", "has no volume of 0 or more"),
        (f"{SECOND + 119}.9999999,2,1", "is earlier, in ns, than the row above"),
    ],
)
def test_a_row_that_is_no_trade_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str, block: int
) -> None:
    monkeypatch.setattr(archive, "BLOCK_BYTES", block)
    pack(tmp_path / "a.zip", ("XBTUSD.csv", f"{SALES}{line}\n{SECOND + 180},2,1\n"))
    with pytest.raises(SourceError) as caught:
        sales(tmp_path)
    assert str(caught.value).startswith(f"a.zip/XBTUSD.csv: series {KEY}: row 4 {says}")


# Which time they cover


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h"])
def test_what_archives_cover_is_what_their_batches_confirm(tmp_path: Path, timeframe: str) -> None:
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", ohlcvt_text(bars_at(minutes(*range(7, 400))))))
    pack(tmp_path / "b.zip", ("XBTUSD_1.csv", ohlcvt_text(bars_at(minutes(*range(390, 500))))))
    later = "".join(f"{SECOND + 60 * at}.25,2,1\n" for at in range(901, 1300, 3))
    pack(tmp_path / "sales.zip", ("XBTUSD.csv", later))
    source = {"ohlcvt_zip": "[ab].zip", "trades_zip": "sales.zip"}
    batches = [*ohlcvt(tmp_path, "[ab].zip", timeframe), *sales(tmp_path, "sales.zip", timeframe)]
    confirmed = joined(interval for batch in batches for interval in batch.confirmed)
    assert len(confirmed) == (3 if timeframe == "1h" else 2)
    assert covered(kraken(timeframe, **source), around(tmp_path)) == confirmed


def test_without_archives_nothing_is_covered(tmp_path: Path) -> None:
    assert covered(kraken(), around(tmp_path)) == ()
    absent = kraken(ohlcvt_zip="*.zip", trades_zip="sales.zip")
    assert covered(absent, around(tmp_path)) == ()
    pack(tmp_path / "a.zip.part", ("XBTUSD_1.csv", GOOD))
    assert covered(kraken(ohlcvt_zip="*.zip*"), around(tmp_path)) == ()


def test_an_archive_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", ("XBTUSD_1.csv", GOOD))
    series, span = kraken(ohlcvt_zip="a.zip"), (START, START + 2 * MINUTE)
    assert covered(series, around(tmp_path)) == (span,)
    status = path.stat()
    damage(path, "XBTUSD_1.csv")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert covered(series, around(tmp_path)) == (span,)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(SourceError, match="it is damaged"):
        covered(series, around(tmp_path))
    pack(path, ("XBTUSD_1.csv", GOOD + f"{SECOND + 120},2,4,1,3,10,7"))
    assert covered(series, around(tmp_path)) == ((START, START + 3 * MINUTE),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"time,open\n{GOOD}", "row 1 does not start with seconds since 1970: found 'time,open'"),
        (f"{GOOD}Total,1\n", "row 3 does not start with seconds since 1970: found 'Total,1'"),
        (f"{SECOND + 600},2,4,1,3,10,7\n{GOOD}", "row 3 is earlier than the first row"),
    ],
)
def test_a_table_that_covers_no_time_is_refused(tmp_path: Path, text: str, says: str) -> None:
    pack(tmp_path / "a.zip", ("XBTUSD_1.csv", text))
    with pytest.raises(SourceError, match=re.escape(f"a.zip/XBTUSD_1.csv: series {KEY}: {says}")):
        covered(kraken(ohlcvt_zip="a.zip"), around(tmp_path))


def test_altnames_are_composed_as_kraken_composes_them(shared_data: Path) -> None:
    pairs = json.loads((shared_data / "kraken_http" / "http_asset_pairs.json").read_text())
    (pair,) = pairs["result"].values()
    assert (pair["wsname"], pair["altname"]) == ("XBT/USDT", altname_of("BTC/USDT"))
    assert altname_of("DOGE/EUR") == "XDGEUR"


def test_codes_of_altnames_are_those_that_ccxt_renames() -> None:
    names = ccxt.kraken().commonCurrencies
    assert {names[code] for code in ALTNAME_CODES.values()} == set(ALTNAME_CODES)
    assert all(names[theirs] == ours for ours, theirs in ALTNAME_CODES.items())
