import io

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.coverage import DAY_SCHEMA, coverage
from trade_pipeline.market.pictures import coverage_png

from .series import DAY, START, bars_at, crypto, stock

HOUR = DAY // 24


def year_of(known: float, good: bool) -> pl.DataFrame:
    """A leap year of equal days of 1,000 bars."""
    unknown = round(1000 * (1 - known))
    days = pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 12, 31), eager=True)
    return pl.DataFrame({"day": days}).select(
        "day",
        expected=pl.lit(1000),
        traded=pl.lit(1000 - unknown),
        quiet=pl.lit(0),
        unknown=pl.lit(unknown),
        duplicates=pl.lit(0),
        good=pl.lit(good),
        reason=pl.lit(None),
    )


def colours(days: pl.DataFrame) -> np.ndarray:
    """The picture as rows of pixels, red, green and blue from 0 to 255."""
    picture = imread(io.BytesIO(coverage_png(days)), format="png")
    return np.rint(picture[..., :3] * 255).astype(int)


def colour(days: pl.DataFrame) -> tuple[int, ...]:
    """The commonest of the picture but white, which is that of its days."""
    pixels = colours(days).reshape(-1, 3)
    found, counts = np.unique(pixels[(pixels < 255).any(axis=1)], axis=0, return_counts=True)
    return tuple(found[counts.argmax()])


def test_good_days_are_blue_and_darken_with_what_is_known() -> None:
    shades = [colour(year_of(known, good=True)) for known in (0.9, 0.97, 0.98, 0.99, 1.0)]
    assert len(set(shades)) == len(shades)
    assert shades == sorted(shades, key=sum, reverse=True)
    assert all(blue > red for red, _, blue in shades)


def test_excluded_days_are_orange_and_darken_with_what_is_not() -> None:
    shades = [colour(year_of(known, good=False)) for known in (0.0, 0.3, 0.6, 0.9, 0.97)]
    assert len(set(shades)) == len(shades)
    assert shades == sorted(shades, key=sum)
    assert all(red > blue for red, _, blue in shades)


def test_days_on_which_nothing_is_expected_are_grey_and_those_beyond_the_series_white() -> None:
    sessions = coverage(bars_at([1_325_548_800_000, 1_356_912_000_000]), [], stock("IBM")).days
    assert sessions["day"].is_between(pl.date(2012, 1, 3), pl.date(2012, 12, 31)).all()
    pixels = colours(sessions)
    middle = pixels[pixels.shape[0] // 3, 60:-20]  # one line through the year
    grey = (middle == middle[:, :1]).all(axis=1) & (middle[:, 0] < 255)
    weekends_and_holidays = 1 - sessions.height / 366
    assert grey.mean() == pytest.approx(weekends_and_holidays, abs=0.02)
    half = year_of(1.0, good=True).head(183)
    line = colours(half)[colours(half).shape[0] // 3, 60:-20]
    assert (line == 255).all(axis=1).mean() == pytest.approx(0.5, abs=0.03)


def test_twenty_years_of_days_that_all_differ_are_a_small_png_and_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    count = 20 * 365
    unknown = rng.integers(0, 1440, count)
    days = pl.DataFrame(
        {
            "day": pl.Series(np.arange(count) + 14_000, dtype=pl.Int32).cast(pl.Date),
            "expected": np.full(count, 1440),
            "traded": 1440 - unknown,
            "quiet": np.zeros(count, dtype=int),
            "unknown": unknown,
            "duplicates": np.zeros(count, dtype=int),
            "good": rng.random(count) < 0.5,
            "reason": pl.Series([None] * count, dtype=pl.String),
        }
    )
    assert days.schema == pl.Schema(DAY_SCHEMA)
    picture = coverage_png(days)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
    assert coverage_png(days) == picture


def test_what_the_coverage_of_bars_gives_can_be_drawn() -> None:
    hours = [START + hour * HOUR for hour in range(24 * 400) if hour % 24 != 5 and hour % 701]
    days = coverage(bars_at(hours), [], crypto(timeframe="1h")).days
    assert coverage_png(days).startswith(b"\x89PNG")


def test_a_series_without_bars_has_a_picture_too() -> None:
    assert coverage_png(coverage(empty_bars(), [], crypto()).days).startswith(b"\x89PNG")
