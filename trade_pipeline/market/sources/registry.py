"""Which source reads which kind of settings. Start at `source_for(series)`."""

from trade_pipeline.market.sources.base import Source
from trade_pipeline.market.sources.bokeh_sample import BokehSample
from trade_pipeline.market.sources.file import Files
from trade_pipeline.settings.series import SeriesSettings

SOURCES: dict[str, Source] = {"bokeh_sample": BokehSample(), "file": Files()}


def source_for(series: SeriesSettings) -> Source:
    """The source of a series, by the kind in its settings."""
    return SOURCES[series.source.kind]
