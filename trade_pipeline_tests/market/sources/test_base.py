from trade_pipeline.market.sources.base import SourceBars, split_years
from trade_pipeline.market.sources.bokeh_sample import BokehSample
from trade_pipeline.market.sources.file import Files
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline_tests.market.series import bars_at, crypto, ms, stock


def test_years_are_cut_out_with_the_time_confirmed_in_them() -> None:
    bars = bars_at([ms(2018, 12, 31, 23, 59), ms(2019, 1, 1), ms(2021, 5, 5)])
    confirmed = ((ms(2018, 12, 31), ms(2019, 1, 2)), (ms(2021, 5, 5), ms(2021, 5, 6)))
    years = split_years(SourceBars(bars, confirmed, "a.csv", ("note",)), range(2018, 2021))
    assert {year: one.bars.height for year, one in years.items()} == {2018: 1, 2019: 1, 2020: 0}
    assert years[2018].confirmed == ((ms(2018, 12, 31), ms(2019, 1, 1)),)
    assert years[2019].confirmed == ((ms(2019, 1, 1), ms(2019, 1, 2)),)
    assert years[2020].confirmed == ()
    assert years[2020].bars.schema == bars.schema
    assert (years[2020].origin, years[2020].notes) == ("a.csv", ("note",))


def test_each_kind_of_settings_has_its_source() -> None:
    assert isinstance(source_for(crypto()), Files)
    assert isinstance(source_for(stock("AAPL")), BokehSample)
