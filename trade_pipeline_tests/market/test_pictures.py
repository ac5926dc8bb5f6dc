from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.coverage import coverage
from trade_pipeline.market.pictures import coverage_png

from .series import DAY, START, bars_at, crypto


def test_a_calendar_of_ten_years_is_a_small_png_and_the_same_each_time() -> None:
    series = crypto(timeframe="1d")
    bars = bars_at([START + day * DAY for day in range(3650) if day % 11])
    days = coverage(bars, [], series).days
    picture = coverage_png(days)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
    assert coverage_png(days) == picture


def test_a_series_without_bars_has_a_picture_too() -> None:
    assert coverage_png(coverage(empty_bars(), [], crypto()).days).startswith(b"\x89PNG")
