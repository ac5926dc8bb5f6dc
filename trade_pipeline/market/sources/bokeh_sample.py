"""Daily stocks shipped in the package `bokeh_sampledata`: real, public domain, no network.

Raw prices with an adjusted close. Knows no other source. Start at `BokehSample.read`.
"""

from importlib.resources import files
from pathlib import Path

from trade_pipeline.market.sources.base import SourceBars, SourceError, WholeHistory
from trade_pipeline.market.sources.table import SPLIT_PART_UNKNOWN, read_table, whole_history
from trade_pipeline.market.sources.unpack import members
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import BokehSampleSource, Columns, FileSource

NAME = "bokeh_sampledata/stocks.csv.gz"
COLUMNS = Columns(
    ts="Date",
    open="Open",
    high="High",
    low="Low",
    close="Close",
    volume="Volume",
    adj_close="Adj Close",
)


class BokehSample(WholeHistory):
    """Reads one ticker; says nothing about days that are absent."""

    implementation = 2

    def read(self, series: SeriesSettings, base: Path) -> SourceBars:
        """All bars of the ticker; `base` is not used. Raises `SourceError`."""
        if not isinstance(series.source, BokehSampleSource):
            raise TypeError(f"series {series.key} is not of kind bokeh_sample")
        layout = FileSource(
            kind="file", path=NAME, columns=COLUMNS, row_filter={"Ticker": series.source.ticker}
        )
        try:
            content = (files("bokeh_sampledata") / "_data" / "stocks.csv.gz").read_bytes()
        except (ModuleNotFoundError, OSError) as error:
            raise SourceError(
                f"{NAME}: series {series.key}: cannot be read ({error}); "
                "install the package bokeh_sampledata."
            ) from error
        ((label, text),) = members(NAME, content, series.key)
        bars = whole_history(read_table(label, text, layout, series), series)
        return SourceBars(bars, confirmed=(), origin=NAME, notes=(SPLIT_PART_UNKNOWN,))
