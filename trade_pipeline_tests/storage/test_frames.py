import datetime
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from trade_pipeline.storage.frames import (
    StorageError,
    content_hash,
    read_frame,
    read_frames,
    read_metadata,
    write_frame,
)
from trade_pipeline.storage.location import ArtifactLocation

steady = settings(max_examples=60, deadline=None, derandomize=True)

LETTERS = pl.Enum(["a", "b", "c"])
VALUES: dict[pl.DataType, st.SearchStrategy[Any]] = {
    pl.Boolean(): st.booleans(),
    pl.Int8(): st.integers(-(2**7), 2**7 - 1),
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.UInt64(): st.integers(0, 2**64 - 1),
    pl.Float32(): st.floats(width=32),
    pl.Float64(): st.floats(),
    pl.Date(): st.dates(),
    pl.Datetime("ms", "UTC"): st.integers(-(2**40), 2**40),
    pl.Datetime("us"): st.integers(-(2**40), 2**40),
    pl.Duration("ms"): st.integers(-(2**40), 2**40),
    pl.Time(): st.times(),
    pl.String(): st.text(max_size=4),
    pl.Binary(): st.binary(max_size=4),
    LETTERS: st.sampled_from(["a", "b", "c"]),
    pl.Null(): st.none(),
}


@st.composite
def frames(draw: st.DrawFn, min_rows: int = 0) -> pl.DataFrame:
    rows = draw(st.integers(min_rows, 6))
    dtypes = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    return pl.DataFrame(
        [
            pl.Series(
                f"column_{n}",
                draw(st.lists(st.none() | VALUES[dtype], min_size=rows, max_size=rows)),
                dtype=dtype,
            )
            for n, dtype in enumerate(dtypes)
        ]
    )


def key(value: Any) -> Any:
    """A value as the hash sees it: one NaN, two zeros."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value


@steady
@given(frame=frames(), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_the_hash_does_not_depend_on_chunks(frame: pl.DataFrame, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, frame.height) for cut in cuts), frame.height]
    parts = [frame.slice(start, end - start) for start, end in pairwise(bounds)]
    chunked = pl.concat(parts, rechunk=False)
    assert content_hash(chunked) == content_hash(frame)


@steady
@given(frame=frames(), before=st.integers(0, 9), after=st.integers(0, 9))
def test_the_hash_does_not_depend_on_the_slice(
    frame: pl.DataFrame, before: int, after: int
) -> None:
    noise = pl.concat([frame.reverse()] * 9) if frame.height else frame
    whole = pl.concat([noise.head(before), frame, noise.head(after)], rechunk=True)
    part = whole.slice(min(before, noise.height), frame.height)
    assert content_hash(part) == content_hash(frame)


@steady
@given(payload=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8))
def test_the_hash_does_not_depend_on_bytes_below_nulls(payload: list[int]) -> None:
    def series(values: list[int], dtype: pa.DataType) -> pl.Series:
        numbers = pa.array(values, type=pa.int64()).buffers()[1]
        column = pa.Array.from_buffers(dtype, 8, [pa.py_buffer(bytes([0b00001111])), numbers])
        return pl.Series("column", column)

    for dtype in (pa.int64(), pa.float64(), pa.timestamp("ms", "UTC")):
        dirty = series(payload, dtype)
        clean = series([*payload[:4], 0, 0, 0, 0], dtype)
        assert dirty.null_count() == 4
        assert content_hash(dirty.to_frame()) == content_hash(clean.to_frame())


def test_the_test_of_null_payloads_holds_payloads() -> None:
    buffers = [pa.py_buffer(b"\x00"), pa.array([7], type=pa.int64()).buffers()[1]]
    series = pl.Series("column", pa.Array.from_buffers(pa.int64(), 1, buffers))
    assert series.to_list() == [None]
    assert series.to_arrow().buffers()[1].to_pybytes()[:8] == (7).to_bytes(8, "little")


def test_all_nans_are_one_value_and_the_two_zeros_are_not() -> None:
    nan = pl.DataFrame({"x": [math.nan]})
    other_nan = nan.select(-pl.col("x"))
    assert content_hash(nan) == content_hash(other_nan)
    assert content_hash(pl.DataFrame({"x": [0.0]})) != content_hash(pl.DataFrame({"x": [-0.0]}))


@steady
@given(frame=frames(min_rows=1), data=st.data())
def test_the_hash_changes_with_any_value(frame: pl.DataFrame, data: st.DataObject) -> None:
    column = data.draw(st.integers(0, frame.width - 1))
    row = data.draw(st.integers(0, frame.height - 1))
    series = frame.to_series(column)
    values = series.to_list()
    drawn = data.draw(st.none() | VALUES[series.dtype])
    new = pl.Series(series.name, [drawn], dtype=series.dtype).item()
    assume(key(new) != key(values[row]))
    changed = pl.concat([series[:row], pl.Series([new], dtype=series.dtype), series[row + 1 :]])
    other = frame.with_columns(changed.alias(series.name))
    assert content_hash(other) != content_hash(frame)


@steady
@given(frame=frames(), data=st.data())
def test_the_hash_changes_with_any_name_or_number_of_rows(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(frame.columns))
    assert content_hash(frame.rename({name: name + "x"})) != content_hash(frame)
    assert content_hash(pl.concat([frame, frame.clear(1)])) != content_hash(frame)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pl.Int64(), pl.Int32()),
        (pl.Int64(), pl.UInt64()),
        (pl.Int64(), pl.Float64()),
        (pl.Int64(), pl.Datetime("ms", "UTC")),
        (pl.Datetime("ms", "UTC"), pl.Datetime("us", "UTC")),
        (pl.Datetime("ms", "UTC"), pl.Datetime("ms")),
        (pl.Duration("ms"), pl.Duration("ns")),
        (pl.String(), pl.Binary()),
        (pl.String(), LETTERS),
        (LETTERS, pl.Enum(["a", "b"])),
        (LETTERS, pl.Enum(["b", "a", "c"])),
        (pl.Null(), pl.Boolean()),
    ],
    ids=str,
)
@pytest.mark.parametrize("values", [[], [None]], ids=["empty", "null"])
def test_the_hash_changes_with_the_dtype(
    first: pl.DataType, second: pl.DataType, values: list[None]
) -> None:
    frames = [pl.DataFrame({"x": pl.Series(values, dtype=dtype)}) for dtype in (first, second)]
    assert content_hash(frames[0]) != content_hash(frames[1])


def test_the_hash_changes_with_metadata_and_with_order() -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": [2, 1]})
    others = [
        content_hash(frame, {"k": "v"}),
        content_hash(frame, {"k": "w"}),
        content_hash(frame, {"l": "v"}),
        content_hash(frame.reverse()),
        content_hash(frame.select("b", "a")),
        content_hash(frame.select(a="b", b="a")),
    ]
    assert content_hash(frame, {}) == content_hash(frame)
    # Reversed rows and exchanged columns are the same values here, and only here.
    assert others.pop() == others[3]
    assert len({content_hash(frame), *others}) == 6
    pair, reverse = {"k": "v", "l": "w"}, {"l": "w", "k": "v"}
    assert content_hash(frame, pair) == content_hash(frame, reverse)


def test_text_cannot_move_across_a_row() -> None:
    first, second = pl.DataFrame({"x": ["ab", "c"]}), pl.DataFrame({"x": ["a", "bc"]})
    assert content_hash(first) != content_hash(second)


def test_the_hash_stays_what_it_was_over_releases() -> None:
    """A change here makes every stored data version stale: do it on purpose only."""
    frame = pl.DataFrame(
        {
            "ts": pl.Series([1_700_000_000_000, None], dtype=pl.Int64).cast(
                pl.Datetime("ms", "UTC")
            ),
            "close": [1.5, math.nan],
            "name": ["é", None],
            "letter": pl.Series(["b", None], dtype=LETTERS),
            "good": [True, None],
        }
    )
    digest = content_hash(frame, {"series": "x"})
    assert digest == "b591f64b909d33432dc3a85c0dfaa0ef1c0f35c8f7b5d1d799aa1cf31fa41dbd"


@pytest.mark.parametrize(
    "series",
    [
        pl.Series("bad", [[1]]),
        pl.Series("bad", [{"a": 1}]),
        pl.Series("bad", ["1"]).cast(pl.Decimal(10, 2)),
        pl.Series("bad", ["a"], dtype=pl.Categorical),
        pl.Series("bad", [1], dtype=pl.Int128),
        pl.Series("bad", [object()], dtype=pl.Object),
    ],
    ids=lambda series: str(series.dtype),
)
def test_a_dtype_the_store_does_not_keep_is_refused_by_name(
    tmp_path: Path, series: pl.Series
) -> None:
    with pytest.raises(StorageError, match=r"x\.parquet: column 'bad' has dtype"):
        write_frame(ArtifactLocation(tmp_path, "x.parquet"), series.to_frame())
    assert list(tmp_path.iterdir()) == []


@steady
@given(frame=frames(), metadata=st.dictionaries(st.text("abc", min_size=1), st.text()))
def test_a_read_gives_back_frame_metadata_and_hash(
    tmp_path_factory: pytest.TempPathFactory, frame: pl.DataFrame, metadata: dict[str, str]
) -> None:
    location = ArtifactLocation(tmp_path_factory.mktemp("store"), "a/year=2024/x.parquet")
    digest = write_frame(location, frame, metadata)
    stored = read_frame(location)
    assert_frame_equal(stored, frame, check_exact=True)
    assert read_metadata(location) == metadata
    assert content_hash(stored, read_metadata(location)) == digest == content_hash(frame, metadata)


def test_frames_are_stacked_in_the_order_given(tmp_path: Path) -> None:
    locations = [ArtifactLocation(tmp_path, f"{name}.parquet") for name in "bca"]
    for n, location in enumerate(locations):
        write_frame(location, pl.DataFrame({"n": range(n * 1000, (n + 1) * 1000)}))
    assert read_frames(locations)["n"].to_list() == list(range(3000))


def test_a_key_is_a_name_and_never_a_pattern(tmp_path: Path) -> None:
    store = tmp_path / "st[a]re*"
    location = ArtifactLocation(store, "x.parquet")
    frame = pl.DataFrame({"day": [datetime.date(2024, 1, 1)]})
    write_frame(location, frame)
    assert_frame_equal(read_frame(location), frame)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    good, bad, other, gone = (
        ArtifactLocation(tmp_path, f"{n}.parquet") for n in ["good", "bad", "other", "gone"]
    )
    write_frame(good, pl.DataFrame({"x": [1]}))
    write_frame(other, pl.DataFrame({"x": ["text"]}))
    bad.path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(StorageError, match=r"gone\.parquet: no such frame"):
        read_frames([good, gone])
    with pytest.raises(StorageError, match=r"gone\.parquet: no such frame"):
        read_metadata(gone)
    with pytest.raises(StorageError, match=r"bad\.parquet: cannot be read"):
        read_frames([good, bad])
    with pytest.raises(StorageError, match=r"bad\.parquet: cannot be read"):
        read_metadata(bad)
    with pytest.raises(StorageError, match=r"other\.parquet: schema .* differs from"):
        read_frames([good, other])
    with pytest.raises(StorageError, match="name at least one"):
        read_frames([])


@pytest.mark.parametrize(
    "columns",
    [{"y": [1]}, {"x": [1], "y": [1]}, {"x": pl.Series(["a"], dtype=LETTERS)}],
    ids=["renamed", "more", "enum"],
)
def test_frames_of_two_schemas_are_never_stacked(tmp_path: Path, columns: Any) -> None:
    first, second = ArtifactLocation(tmp_path, "a.parquet"), ArtifactLocation(tmp_path, "b.parquet")
    write_frame(first, pl.DataFrame({"x": [1]}))
    write_frame(second, pl.DataFrame(columns))
    with pytest.raises(StorageError, match=r"b\.parquet: schema"):
        read_frames([first, second])
